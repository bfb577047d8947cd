"""All that keeps one level alive: preventions add up, and at most one of them says what predictions are compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from hjepa.contracts import Build, Here, Pair, Prevention, Spec, States


class Preventions(nn.Module):
    """The list `prevention` of a level, made.

    A prevention is named by its registry name, the second of a kind with a 2 behind (`vicreg`, `vicreg2`). One that is an
    `nn.Module` is a child under that name, so that its state is checkpointed.
    ValueError where two of them give targets.
    """

    def __init__(self, spec: Spec, factories: Sequence[Build[Prevention]]) -> None:
        super().__init__()
        if any(getattr(factory, "shared", False) for factory in factories):
            raise ValueError("a prevention cannot be shared, for it belongs to the states of its level: name it here again")
        names = _numbered(factory.name for factory in factories)
        self._members = {name: factory(spec) for name, factory in zip(names, factories, strict=True)}
        giving = [name for name, member in self._members.items() if hasattr(member, "targets")]
        if len(giving) > 1:
            raise ValueError(f"{' and '.join(giving)} both give targets: keep one of them")
        self.giving = giving[0] if giving else None
        """The one that gives targets; None where the level's own states are the targets, with gradient."""
        self.parts = nn.ModuleDict({name: part for name, part in self._members.items() if isinstance(part, nn.Module)})

    @property
    def names(self) -> list[str]:
        """Of all of them, in order."""
        return list(self._members)

    @property
    def gives_targets(self) -> bool:
        """Whether targets come from a prevention, and not from the level's own states with gradient."""
        return self.giving is not None

    def bind(self, encoder: Any) -> None:
        """Shows the level's encoder, once, after its parameters were initialised."""
        for member in self._members.values():
            if hasattr(member, "bind"):
                member.bind(encoder)

    def targets(self, here: Here) -> States:
        """What predictions are compared with; without a prevention for it the level's own states, with gradient."""
        return here.states if self.giving is None else self._members[self.giving].targets(here)

    def after_step(self, step: int) -> None:
        """For those that are no modules; the stack finds the others itself."""
        for member in self._members.values():
            if hasattr(member, "after_step") and not isinstance(member, nn.Module):
                member.after_step(step)

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`{"vicreg.std": scalar, ...}`, weighted."""
        return {
            f"{name}.{term}": value
            for name, member in self._members.items()
            if hasattr(member, "terms")
            for term, value in member.terms(pair, here).items()
        }


def _numbered(names: Iterable[str]) -> list[str]:
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name}{seen[name]}")
    return result
