"""How much of the way is left, by the places in which start and goal differ."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Spec, States
from hjepa_control.remaining import Remaining

SPEC = Spec(2, grid=(5,))
BACKGROUND = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
DOT = torch.tensor([3.0, -1.0])


def at(*places: int, bright: float = 1.0) -> States:
    """One sample: a dot on a background, at one of five places at each step."""
    tokens = BACKGROUND.repeat(1, len(places), 1, 1)
    for step, place in enumerate(places):
        tokens[0, step, place] += bright * DOT
    return States(tokens, torch.arange(len(places))[None])


def cost(way: States, goal: States | None = None, start: States | None = None, best: float = 0.0) -> float:
    return float(Remaining(SPEC, best=best)(way, at(4) if goal is None else goal, start or at(0)).value)


def test_by_hand() -> None:
    """1 at the start, 0 at the goal, a half at whatever is unlike both."""
    assert [round(cost(at(place)), 5) for place in range(5)] == [1, 0.5, 0.5, 0.5, 0]
    assert round(cost(at(0, 1, 4, 2)), 5) == 0.5
    assert round(cost(at(0, 1, 4, 2), best=2.0), 5) == 0.5 and round(cost(at(0, 1, 3, 2), best=2.0), 5) == 0.625 + 1
    assert not Remaining(SPEC)(at(0), at(4), at(0)).violation.any()


@given(bright=st.floats(0, 1))
def test_fading_elsewhere_gains_nothing(bright: float) -> None:
    """As a squared distance would have it."""
    plain, faint = (float((at(2, bright=of).tokens - at(4).tokens).square().mean()) for of in (1.0, bright))
    assert faint <= plain + 1e-6
    assert abs(cost(at(2, bright=bright)) - cost(at(2))) < 1e-6


@given(scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_it_does_not_depend_on_the_scale_of_states(scale: float, shift: float) -> None:
    def other(states: States) -> States:
        return States(scale * states.tokens + shift, states.time)

    assert abs(cost(other(at(1, 4)), other(at(4)), other(at(0))) - cost(at(1, 4))) < 1e-3


def test_where_start_and_goal_are_the_same_nothing_is_left() -> None:
    def of(goal: Tensor) -> Tensor:
        return Remaining(SPEC)(at(4), States(goal, torch.zeros(1, 1)), at(4)).value

    assert of(at(4).tokens).tolist() == [0] and Remaining(SPEC)(at(1), None, at(0)).value.tolist() == [0]
