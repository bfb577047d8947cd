"""From the top down: with one step above it is the planner alone, else the way to the first state above."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from toys import KEY, posed

from hjepa.contracts import ActionSpace, Plan, PlanningProblem, States
from hjepa.randomness import Key
from hjepa_control.cem import Cem
from hjepa_control.hierarchical import Hierarchical
from hjepa_control.icem import Icem
from hjepa_control.truth import Truth


def build(planner: Any) -> Any:
    return lambda: planner


class Asked:
    """A planner that remembers the problems that it was given."""

    def __init__(self) -> None:
        self.problems: list[Truth] = []
        self.warm: list[Plan | None] = []

    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        assert isinstance(problem, Truth)
        self.problems.append(problem)
        self.warm.append(warm)
        return Cem(samples=32, iterations=2).plan(problem, warm, key)


def test_with_one_step_above_it_is_the_planner_alone_bit_for_bit() -> None:
    """P31."""
    flat, tall = posed(), posed(above=posed(horizon=1, stride=8))
    alone = Icem().plan(flat, None, KEY)
    assert torch.equal(Hierarchical(inner=build(Icem())).plan(tall, None, KEY).actions, alone.actions)
    assert torch.equal(Hierarchical(inner=build(Icem())).plan(flat, None, KEY).actions, alone.actions)


def test_each_level_goes_to_the_first_state_of_the_plan_above() -> None:
    """P32: three levels; steps of a level are as many as one of the level above has."""
    top = posed(horizon=3, stride=16)
    problem = posed(horizon=40, above=posed(horizon=8, stride=4, above=top))
    asked = Asked()
    plan = Hierarchical(inner=build(asked)).plan(problem, None, KEY)
    assert [(one.stride, one.horizon) for one in asked.problems] == [(16, 3), (4, 4), (1, 4)]
    assert plan.actions.shape == (20, 4, 2)
    again = Asked()
    Hierarchical(inner=build(Asked()), upper=build(again)).plan(problem, None, KEY)
    assert [one.stride for one in again.problems] == [16, 4]


def test_waypoints_lead_to_the_goal() -> None:
    """With the truth at both levels: after some leaps, most of those who are in its way through the door have arrived."""
    planner = Hierarchical(inner=build(Icem(samples=48, iterations=3)))
    start = posed(horizon=8, count=20)
    place = start.place
    for step in range(9):
        problem = replace(start, place=place, above=replace(start, place=place, stride=8))
        plan = planner.plan(problem, None, KEY.fold(step))
        place = problem.rollout(plan.actions[:, None]).tokens[:, -1, 0]
    assert ((place - start.goal).norm(dim=1) < 4.5).float().mean() > 0.5


class Mute(Truth):
    """Nobody knows in which steps a leap would be done."""

    def unfolded(self, action: Tensor) -> None:  # type: ignore[override]
        return None


def three_levels(kind: type[Truth]) -> Truth:
    levels = [posed(horizon=3, stride=16), posed(horizon=8, stride=4), posed(horizon=40)]
    above: Truth | None = None
    for one in levels:
        above = kind(**{field.name: getattr(one, field.name) for field in fields(one)} | {"above": above})
    assert above is not None
    return above


def test_plans_of_all_levels_are_followed_up() -> None:
    """Each from where as many of its own whole steps are done."""
    asked = Asked()
    planner, problem = Hierarchical(inner=build(asked)), three_levels(Mute)
    first = planner.plan(problem, None, KEY)
    assert asked.warm == [None, None, None] and first.above and first.above.above and first.above.above.above is None
    for steps, middle, upper in ((1, 0, 0), (4, 1, 0), (8, 2, 0), (16, 4, 1), (32, 8, 2)):
        asked.warm = []
        planner.plan(problem, first.after(steps), KEY)
        lowest, between, highest = first.actions, first.above.actions, first.above.above.actions
        expected = [highest[:, upper:], between[:, middle:], lowest[:, steps:]]
        assert all(torch.equal(one.actions, left) for one, left in zip(asked.warm, expected, strict=True) if one)
        assert None not in asked.warm


def test_a_level_begins_with_the_steps_in_which_what_is_planned_above_would_be_done() -> None:
    asked, problem = Asked(), three_levels(Truth)
    plan = Hierarchical(inner=build(asked)).plan(problem, None, KEY)
    highest, middle, lowest = asked.warm
    assert highest is None and middle and lowest and plan.above and plan.above.above and problem.above
    assert torch.equal(middle.actions, problem.above.unfolded(plan.above.above.actions[:, 0]))
    assert torch.equal(lowest.actions, problem.unfolded(plan.above.actions[:, 0]))


class Abreast(Truth):
    """A leap is told its steps side by side: where a plan of leaps is left within one, the rest of it is known."""

    @property
    def space(self) -> ActionSpace:
        below = super().space
        return replace(below, low=below.low.repeat(self.stride), high=below.high.repeat(self.stride), joined=self.stride)

    def rollout(self, actions: Tensor) -> States:
        return super().rollout(actions.unflatten(-1, (self.stride, 2)).sum(-2))

    def unfolded(self, action: Tensor) -> Tensor:
        assert self.above is not None
        return action.unflatten(-1, (self.above.stride // self.stride, 2 * self.stride))


def test_plans_whose_steps_lie_side_by_side_are_followed_up_from_within_a_step() -> None:
    asked = Asked()
    planner, problem = Hierarchical(inner=build(asked)), three_levels(Abreast)
    first = planner.plan(problem, None, KEY)
    assert first.above and first.above.above
    steps = [plan.actions.flatten(1) for plan in (first, first.above, first.above.above)]
    for done in (0, 1, 3, 4, 6, 16, 20, 60):
        left = first.after(done)
        assert left.above and left.above.above
        between, highest = left.above.actions, left.above.above.actions
        assert torch.equal(between.flatten(1), steps[1][:, 2 * done :][:, : 8 * between.shape[1]])
        assert torch.equal(highest.flatten(1), steps[2][:, 8 * (done // 4) :][:, : 32 * highest.shape[1]])
        assert (between.shape[1], highest.shape[1]) == (max(0, 16 - done) // 4, max(0, 12 - done // 4) // 4)
