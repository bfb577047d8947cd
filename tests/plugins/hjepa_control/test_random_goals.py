"""Goals that somebody came upon: a walk leads to each, and they are reached where the world looks as it did there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa.errors import Mistake
from hjepa.randomness import Key
from hjepa_control.named import Named
from hjepa_control.random_goals import RandomGoals
from hjepa_control.roaming import anything

KEY = Key.of(0).fold(torch.arange(12))


def world(**options: Any) -> RandomGoals:
    return RandomGoals(3, of=Named("two_rooms", {}), **({"near": 4.5} | options))


def test_a_walk_leads_to_each_goal() -> None:
    made = world(steps=10)
    tasks = made.tasks(KEY)
    begun, goal = made.reset(tasks), made.goal()
    assert goal["frames"].shape == (12, 1, 2, 65, 65) and not torch.equal(goal["frames"], begun["frames"])
    alone = Named("two_rooms", {})(3)
    assert torch.equal(alone.reset(tasks)["position"], begun["position"])
    for action in anything(Key.of(3, "random goals").fold_rows(tasks), made.actions, 10).unbind(dim=1):
        (seen, _), (again, reached) = alone.step(action), made.step(action)
        assert torch.equal(seen["frames"], again["frames"])
    assert all(torch.equal(seen[name], goal[name]) for name in seen) and reached.all()


@given(seed=st.integers(0, 2**31), near=st.floats(1.0, 6.0))
@settings(max_examples=20, deadline=None)
def test_reached_is_what_is_near_and_not_the_goals_of_the_world(seed: int, near: float) -> None:
    made = world(near=near)
    tasks = made.tasks(Key.of(seed).fold(torch.arange(6)))
    seen, goal = made.reset(tasks), made.goal()["position"]
    assert ((seen["position"] - goal)[:, 0].norm(dim=1) >= near).all()  # a goal is not where its task begins
    for _ in range(10):
        seen, reached = made.step((goal - seen["position"])[:, 0])
        assert torch.equal(reached, (seen["position"] - goal)[:, 0].norm(dim=1) < near)


def test_goals_are_as_far_as_asked_whatever_stands_beside_a_task() -> None:
    made = world()
    tasks = made.tasks(KEY, 8.0, 16.0)
    away = (made.reset(tasks)["position"] - made.goal()["position"])[:, 0].norm(dim=1)
    assert (away >= 8).all() and (away <= 16).all() and len(tasks.unique(dim=0)) == 12
    assert torch.equal(made.tasks(Key(KEY.word[5:7]), 8.0, 16.0), tasks[5:7])
    made.reset(tasks[5:7])
    alone = made.goal()["frames"]
    made.reset(tasks)
    assert torch.equal(made.goal()["frames"][5:7], alone)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(Mistake, match="of 32 walks of 5 steps none ends 90 to inf away"):
        world(steps=5).tasks(KEY, 90.0)
    with pytest.raises(Mistake, match=r"by: 'positon' is not seen, did you mean 'position'\? \(there are: frames, position\)"):
        world(by="positon").tasks(KEY)
