"""What the levels have learned: frozen features of fixed samples, shown to the probes of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hjepa.compose import Maker
from hjepa.contracts import Batch, Observation, Spec, States
from hjepa.errors import Mistake, listed, nearest
from hjepa.loading import Source
from hjepa.monitor import at_rest
from hjepa.stack import Pass, Stack
from hjepa.study import Study

CPU = torch.device("cpu")


class Bench:
    """What probes may look at (the protocol `Observer`): evaluation mode, no gradient, always the same samples of a split."""

    def __init__(self, stack: Stack, sources: Mapping[str, Source], study: Study, device: torch.device) -> None:
        self.stack, self.sources, self.device = stack, sources, device
        self.samples, self.batch = study.evaluate.samples, study.evaluate.batch
        self._seen: dict[tuple[str, str], Observation] = {}
        self._conditions: dict[tuple[str, str], Tensor | None] = {}

    def spec(self, level: str) -> Spec:
        """Of the states that the level gives on its own source."""
        return self.stack.composer.spec(level, self.stack.nodes[level].source)

    def observe(self, level: str, split: str) -> Observation:
        """The level's states of the first samples of a split, on the CPU."""
        if (level, split) not in self._seen:
            chunks = [self._chunk(level, batch) for batch in self._batches(level, split)]
            states = _cat_states([states for states, _, _ in chunks])
            batch = {key: torch.cat([batch[key].cpu() for _, _, batch in chunks]) for key in chunks[0][2]}
            conditions = [condition for _, condition, _ in chunks if condition is not None]
            self._conditions[level, split] = torch.cat(conditions) if conditions else None
            self._seen[level, split] = Observation(states, batch)
        return self._seen[level, split]

    def _batches(self, level: str, split: str) -> list[Batch]:
        source = self.sources[self.stack.nodes[level].source]
        count = source.count(split, self.samples)
        starts = range(0, count, self.batch)
        return [source.look(split, start, min(start + self.batch, count), self.device) for start in starts]

    def _chunk(self, level: str, batch: Batch) -> tuple[States, Tensor | None, Batch]:
        one = Pass(self.stack, {self.stack.nodes[level].source: batch}, step=0, whole=True)
        with at_rest(self.stack):
            states, condition = one.states(level, self.stack.nodes[level].source), one.here(level).condition
        return _on(CPU, states), None if condition is None else condition.cpu(), batch

    def predict(self, level: str, split: str, start: int, steps: int) -> States:
        """Own steps start+1 ... start+steps, predicted from own steps 0 ... start."""
        seen, condition = self.observe(level, split).states, self._conditions[level, split]
        if not hasattr(self.stack.levels[level], "rollout"):
            raise Mistake(f"level {level!r} predicts no later states: a {self.stack.nodes[level].plan.component.name} cannot")
        rows = torch.arange(len(seen.time))
        chunks = [rows[at : at + self.batch] for at in range(0, len(rows), self.batch)]
        rolled = [self._rolled(level, seen.rows(i), None if condition is None else condition[i], start, steps) for i in chunks]
        return _cat_states(rolled)

    def _rolled(self, level: str, seen: States, condition: Tensor | None, start: int, steps: int) -> States:
        actions = None if seen.actions is None else seen.actions[:, start : start + steps].to(self.device)
        known, predicting = _on(self.device, seen.slice(0, start + 1)), self.stack.levels[level]
        if condition is not None:
            condition = condition[:, : start + 1].to(self.device)
        with at_rest(self.stack):
            return _on(CPU, predicting.rollout(known, actions, steps, condition))  # type: ignore[operator]


def _on(device: torch.device, states: States) -> States:
    return States(
        tokens=states.tokens.float().to(device),
        time=states.time.to(device),
        grid=states.grid,
        valid=None if states.valid is None else states.valid.to(device),
        maps=tuple(m.float().to(device) for m in states.maps),
        actions=None if states.actions is None else states.actions.to(device),
    )


def _cat_states(parts: list[States]) -> States:
    first = parts[0]
    return States(
        tokens=torch.cat([p.tokens for p in parts]),
        time=torch.cat([p.time for p in parts]),
        grid=first.grid,
        valid=None if first.valid is None else torch.cat([p.valid for p in parts if p.valid is not None]),
        maps=tuple(torch.cat(maps) for maps in zip(*(p.maps for p in parts), strict=True)),
        actions=None if first.actions is None else torch.cat([p.actions for p in parts if p.actions is not None]),
    )


def probes(study: Study, only: str | None = None) -> dict[str, Any]:
    """The probes of a study, made; one of them where its label is given."""
    if only is not None and only not in study.probes:
        raise Mistake(f"no probe {only!r}{nearest(only, study.probes)} (the study has: {listed(study.probes)})")
    maker = Maker(study)
    return {label: maker.make(probe) for label, probe in study.probes.items() if only in (None, label)}


def evaluate(
    study: Study, stack: Stack, untrained: Stack, sources: Mapping[str, Source], device: torch.device, only: str | None = None
) -> tuple[dict[str, float], list[Callable[[Any], None]]]:
    """`probe/<label>/<score>` of the stack, `.../untrained_<score>` of the same stack before training, and what draws them."""
    made = probes(study, only)
    trained, fresh = (Bench(one, sources, study, device) for one in (stack, untrained))
    scores: dict[str, float] = {}
    for label, probe in made.items():
        scores |= {f"probe/{label}/{name}": value for name, value in _measured(label, probe, trained).items()}
        scores |= {f"probe/{label}/untrained_{name}": value for name, value in _measured(label, probe, fresh).items()}
    draws: list[Callable[[Any], None]] = [partial(probe.draw, trained) for probe in made.values() if hasattr(probe, "draw")]
    return scores, draws


def _measured(label: str, probe: Any, bench: Bench) -> dict[str, float]:
    """What a probe finds. What it cannot do is the study's mistake."""
    try:
        return dict(probe.measure(bench))
    except (ValueError, Mistake) as error:
        raise Mistake(f"probes.{label}: {error}") from error
