"""The world as a model: what it foresees is what happens, at every level."""

from __future__ import annotations

import torch
from torch import Tensor
from toys import KEY, ROOMS, posed

from hjepa_control.icem import Icem
from hjepa_control.rooms import FASTEST
from hjepa_control.truth import Truth
from hjepa_control.walls import covered


def candidates(problem: Truth, count: int = 7) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return problem.space.high * (2 * torch.rand(problem.batch, count, problem.horizon, 2, generator=draw) - 1)


def test_what_is_foreseen_is_what_happens() -> None:
    problem = posed()
    actions = candidates(problem)
    foreseen = problem.rollout(actions).tokens.view(20, 7, 12, 2)
    place, world = problem.place, ROOMS.world(ROOMS.tasks(KEY)[:, 4:])
    for step in range(12):
        place = ROOMS.moved(world, place, actions[:, 3, step], KEY.fold(step))
        torch.testing.assert_close(foreseen[:, 3, step], place)


def test_a_leap_is_so_many_steps_straight_on() -> None:
    problem = posed(horizon=3, stride=8)
    assert torch.equal(problem.space.high, torch.full((2,), 8 * FASTEST))
    leaps = candidates(problem)
    small = (leaps / 8).repeat_interleave(8, dim=2)
    steps = posed(horizon=24).rollout(small).tokens.view(20, 7, 24, 2)
    torch.testing.assert_close(problem.rollout(leaps).tokens.view(20, 7, 3, 2), steps[:, :, 7::8])
    assert not covered(problem.boxes, steps.flatten(1, 2)).any()


def test_one_step_after_the_other_is_a_rollout() -> None:
    problem = posed(horizon=5)
    actions = candidates(problem, 1)
    carry, places = problem.begin(), []
    for action in actions[:, 0].unbind(1):
        states, carry = problem.step(carry, action)
        places.append(states.tokens)
    torch.testing.assert_close(torch.cat(places, 1), problem.rollout(actions).tokens)


def test_a_plan_with_the_truth_comes_nearer() -> None:
    problem = posed(horizon=30)
    plan = Icem().plan(problem, None, KEY)
    end = problem.rollout(plan.actions[:, None]).tokens[:, -1, 0]
    before, after = ((place - problem.goal).norm(dim=1) for place in (problem.place, end))
    assert (after < before).float().mean() > 0.7


def test_the_way_to_a_waypoint_has_the_steps_of_a_leap() -> None:
    above = posed(horizon=4, stride=8)
    problem = posed(horizon=40, above=above)
    waypoint = above.rollout(candidates(above, 1)).slice(0, 1)
    lower = problem.towards(waypoint)
    assert lower.horizon == 8 and torch.equal(lower.goal, waypoint.tokens[:, 0, 0])
    assert lower.above is above and lower.place is problem.place


def test_a_leap_unfolds_into_the_steps_that_it_is_made_of() -> None:
    below = posed(horizon=4, above=posed(horizon=1, stride=4))
    assert below.above is not None
    leap = torch.linspace(-20, 20, 40).view(20, 2)
    steps = below.unfolded(leap)
    assert steps.shape == (20, 4, 2) and (steps.norm(dim=-1) <= 2.45 + 1e-5).all()
    ends = below.rollout(steps[:, None]).tokens[:, -1]
    torch.testing.assert_close(ends, below.above.rollout(leap[:, None, None]).tokens[:, 0])
