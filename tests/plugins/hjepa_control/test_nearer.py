"""A cost that is linear in where a plan leads."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toys import states

from hjepa.contracts import Spec
from hjepa_control.nearer import Nearer

NEARER = Nearer(Spec(2))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    places, goal = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]]), states(torch.tensor([[[3.0, 4.0]]]))
    at_first, at_goal, beyond = 25 / 2, -25 / 2, (25 - 100) / 2
    assert NEARER(states(places), goal).value.tolist() == [(at_first + at_goal + beyond) / 3]
    assert NEARER(states(places[:, :1]), goal).value.tolist() == [12.5]
    assert Nearer(Spec(2), best=2.0)(states(places), goal).value.tolist() == [(at_first + at_goal + beyond) / 3 + 2 * beyond]
    assert not NEARER(states(places), goal).violation.any()


@given(seed=st.integers(0, 99), steps=st.integers(1, 6), tokens=st.integers(1, 4))
def test_it_is_the_difference_of_two_squared_distances(seed: int, steps: int, tokens: int) -> None:
    way, goal = drawn(seed, 3, steps, 2 * tokens), drawn(seed + 100, 3, 1, 2 * tokens)
    expected = ((way - goal).square() - (way - way[:, :1]).square()).mean((1, 2))
    torch.testing.assert_close(NEARER(states(way), states(goal)).value, expected, atol=1e-5, rtol=1e-5)


@given(seed=st.integers(0, 99), share=st.floats(0, 1))
def test_what_may_come_costs_on_average_what_is_foreseen_of_it(seed: int, share: float) -> None:
    """Of two futures after the same first step; a squared distance would say that not knowing which is better than either."""
    first, one, other, goal = (drawn(seed + part, 4, 1, 3) for part in range(4))
    mixed = share * one + (1 - share) * other
    costs = [NEARER(states(torch.cat((first, after), 1)), states(goal)).value for after in (one, other, mixed)]
    torch.testing.assert_close(share * costs[0] + (1 - share) * costs[1], costs[2], atol=1e-4, rtol=1e-4)


def test_without_a_goal_nothing_costs_anything() -> None:
    assert NEARER(states(torch.ones(2, 3, 2)), None).value.tolist() == [0, 0]
