from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from hjepa.contracts import Here, Pair, Spec, States
from hjepa.nn.preventions import Preventions
from hjepa.randomness import Key


class Teacher(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, self.encoder = spec, ()
        self.register_buffer("state", torch.ones(()))

    def bind(self, encoder: Any) -> None:
        self.encoder = (encoder,)

    def targets(self, here: Here) -> States:
        return here.states.detached()


class Penalty:
    """Neither a module nor bound."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def terms(self, pair: Pair, here: Here) -> dict[str, torch.Tensor]:
        return {"one": pair.embedding.sum(), "two": 2 * pair.embedding.sum()}


@dataclass
class Build:
    name: str
    make: type
    path: str = "levels.frame.prevention"
    shared: bool = False

    def __call__(self, spec: Spec) -> Any:
        return self.make(spec)


def here() -> Here:
    states = States(torch.ones(1, 2, 1, 3, requires_grad=True), torch.zeros(1, 2, dtype=torch.int64))
    return Here(lambda: states, lambda: states, lambda encoder: states, Key.of(0), Key.of(0), 0)


def test_terms_add_up_under_numbered_names() -> None:
    preventions = Preventions(Spec(3), [Build("vicreg", Penalty), Build("ema", Teacher), Build("vicreg", Penalty)])
    x = torch.ones(4, 3)
    terms = preventions.terms(Pair(x, x, x), here())
    assert {name: value.item() for name, value in terms.items()} == {
        "vicreg.one": 12,
        "vicreg.two": 24,
        "vicreg2.one": 12,
        "vicreg2.two": 24,
    }


def test_each_is_built_with_the_spec_and_bound_to_the_encoder() -> None:
    preventions = Preventions(Spec(3), [Build("penalty", Penalty), Build("ema", Teacher)])
    encoder = nn.Linear(2, 2)
    preventions.bind(encoder)
    assert preventions.parts["ema"].spec == Spec(3)
    assert preventions.parts["ema"].encoder == (encoder,)
    assert list(preventions.state_dict()) == ["parts.ema.state"]


def test_targets_are_the_states_with_gradient_unless_a_prevention_gives_them() -> None:
    without = Preventions(Spec(3), [Build("penalty", Penalty)])
    assert not without.gives_targets
    assert without.targets(here()).tokens.requires_grad
    with_one = Preventions(Spec(3), [Build("penalty", Penalty), Build("ema", Teacher)])
    assert with_one.gives_targets
    assert not with_one.targets(here()).tokens.requires_grad


def test_two_that_give_targets_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="ema and stop_gradient both give targets"):
        Preventions(Spec(3), [Build("ema", Teacher), Build("penalty", Penalty), Build("stop_gradient", Teacher)])
    with pytest.raises(ValueError, match="ema and ema2 both give targets"):
        Preventions(Spec(3), [Build("ema", Teacher), Build("ema", Teacher)])


def test_none_at_all_is_allowed() -> None:
    x = torch.ones(4, 3)
    assert Preventions(Spec(3), []).terms(Pair(x, x, x), here()) == {}
