"""What a plan costs that shall lead to a goal."""

from __future__ import annotations

import math

import pytest
import torch
from toys import states

from hjepa.contracts import Spec
from hjepa_control.distance import Distance

PLACES = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[0.0, 0.0], [1.0, 1.0]]])
GOAL = states(torch.zeros(2, 1, 2))


def test_by_hand() -> None:
    assert Distance(Spec(2))(states(PLACES), GOAL, GOAL).value.tolist() == [(12.5 + 2) / 2, 0.5]
    assert Distance(Spec(2), steps="last")(states(PLACES), GOAL, GOAL).value.tolist() == [2, 1]
    found = Distance(Spec(2), steps="last", saturation=4.0)(states(PLACES), GOAL, GOAL)
    assert found.value.tolist() == pytest.approx([1 - math.exp(-0.5), 1 - math.exp(-0.25)])
    assert not found.violation.any()


def test_without_a_goal_nothing_costs_anything() -> None:
    found = Distance(Spec(2))(states(PLACES), None, GOAL)
    assert found.value.tolist() == found.violation.tolist() == [0, 0]


def test_far_away_all_is_equally_far() -> None:
    far = Distance(Spec(2), saturation=1.0)(states(PLACES + 100), GOAL, GOAL).value
    torch.testing.assert_close(far, torch.ones(2))
