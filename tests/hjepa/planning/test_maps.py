"""Maps of a room: every place is what a world shows there, and a state is read as the place that looks most like it."""

from __future__ import annotations

import torch
from planned import setting

from hjepa.planning import episodes, maps


def test_a_state_is_read_as_the_place_where_it_was_seen_and_the_goal_costs_least() -> None:
    found = setting()
    seen = maps.of_task(found, 1, (65, 65))
    assert seen is not None
    assert seen.cost.shape == (maps.FINE**2,)
    for row in (0, 700, 2303):
        state = seen.states[0].rows(torch.tensor([row]))
        assert torch.equal(seen.place_of(0, state), seen.places[row])
    assert seen.places.min() > 6 and seen.places.max() < 59
    goal = found.tasks[1, 2:4]
    nearest = (seen.places - goal).norm(dim=1).argmin()
    assert seen.cost[nearest] <= seen.cost.median()


def test_a_place_costs_what_a_plan_costs_that_leads_there_from_the_start() -> None:
    costs = {"goal": {"name": "remaining", "level": "state"}, "true": {"name": "distance", "level": "world"}}
    found = setting(costs=costs)
    seen = maps.of_task(found, 1, (65, 65))
    assert seen is not None
    obs = episodes.standing(found.world.reset(found.tasks[1:2]), 1, 2)
    problem = found.posed(found.ways["planned"], obs, 4)
    for row in (0, 1200, 2303):
        there = seen.states[0].rows(torch.tensor([row]))
        torch.testing.assert_close(seen.cost[row], problem.cost(there).value[0, 0], atol=1e-5, rtol=1e-4)


def test_the_first_axis_of_a_map_goes_down() -> None:
    seen = maps.of_task(setting(), 0, (65, 65))
    assert seen is not None
    grid = seen.places.view(maps.FINE, maps.FINE, 2)
    assert (grid[1:, :, 1] > grid[:-1, :, 1]).all() and (grid[:, 1:, 0] > grid[:, :-1, 0]).all()


def test_without_a_level_that_plans_there_is_none() -> None:
    alone = setting(horizon={}, costs={"place": {"name": "distance", "level": "world"}})
    assert maps.of_task(alone, 0, (65, 65)) is None
