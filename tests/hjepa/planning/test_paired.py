"""Policies in the same tasks: the difference of what they reach, task by task, and how sure it is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.planning import Acted, episodes, paired
from hjepa.planning.episodes import Record


def acted(**reached: list[int]) -> dict[str, Acted]:
    """Policies that reached these goals in the second of three steps, and were not there in the last."""
    still = torch.zeros(len(next(iter(reached.values()))))
    policy: Any = None
    ways: dict[str, Tensor] = {name: torch.stack([still, torch.tensor(hit), still], 1).bool() for name, hit in reached.items()}
    return {name: Acted(Record(way, []), {}, policy) for name, way in ways.items()}


@pytest.mark.parametrize(
    ("gained", "lost", "count", "low", "high"),
    [
        (1, 7, 21, -0.5084, -0.0134),  # by hand: -6/23 with a deviation of sqrt((10/23 - (6/23)^2) / 23) = 0.12627
        (9, 2, 50, 0.0037, 0.2655),  # 7/52 with sqrt((13/52 - (7/52)^2) / 52) = 0.066777
        (0, 0, 50, -0.0533, 0.0533),  # 0 with sqrt((2/52) / 52) = 0.027196
    ],
)
def test_an_interval_is_that_of_bonett_and_price(gained: int, lost: int, count: int, low: float, high: float) -> None:
    assert paired.interval(gained, lost, count) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 300), st.data())
def test_an_interval_holds_the_difference_and_changes_its_sign_where_the_two_are_swapped(
    count: int, data: st.DataObject
) -> None:
    gained = data.draw(st.integers(0, count))
    lost = data.draw(st.integers(0, count - gained))
    low, high = paired.interval(gained, lost, count)
    assert -1 <= low <= (gained - lost) / count <= high <= 1
    assert paired.interval(lost, gained, count) == pytest.approx((-high, -low))
    if gained == lost:
        assert low < 0 < high


@given(st.integers(10, 100), st.data())
def test_in_the_same_tasks_one_is_surer_than_of_two_shares(count: int, data: st.DataObject) -> None:
    """Where hardly any task tells two policies apart, that says more than both shares do."""
    common = data.draw(st.integers(count // 4, 3 * count // 4))
    low, high = paired.interval(1, 0, count)
    apart = math.hypot(*(ends[1] - ends[0] for ends in (episodes.interval(n, count) for n in (common, common + 1))))
    assert high - low < apart


def test_every_policy_is_held_against_what_was_learned() -> None:
    found = paired.against(acted(random=[0, 0, 0, 1], oracle=[1, 1, 1, 1], planned=[1, 1, 0, 0], wide=[1, 0, 1, 1]))
    assert list(found) == ["random", "oracle", "wide"]
    assert {name: scores["against"] for name, scores in found.items()} == {"random": -0.25, "oracle": 0.5, "wide": 0.25}
    assert (found["random"]["against_low"], found["random"]["against_high"]) == paired.interval(1, 2, 4)
    assert (found["wide"]["against_low"], found["wide"]["against_high"]) == paired.interval(2, 1, 4)


def test_where_nothing_was_learned_they_are_held_against_the_world_itself() -> None:
    found = paired.against(acted(oracle=[1, 1, 0], narrow=[1, 0, 0]))
    assert list(found) == ["narrow"]
    assert found["narrow"]["against"] == pytest.approx(-1 / 3)


def test_without_a_plan_there_is_nothing_to_be_held_against() -> None:
    assert paired.against(acted(random=[0, 1], straight=[1, 1])) == {}
