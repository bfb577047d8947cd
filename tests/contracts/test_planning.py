"""Planners on what a stack has learned: beams of single moves, and moves towards the waypoints of leaps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import contract_lab as lab
import pytest
import torch
from torch import Tensor

from hjepa import control
from hjepa.contracts import ActionSpace, Batch, Cost, States
from hjepa.errors import Mistake
from hjepa.nn.population import order
from hjepa.randomness import Key

Trained = Callable[[str], Path]

MOVES = torch.tensor([[x, y] for x in (-0.5, 0.0, 0.5) for y in (-0.5, 0.0, 0.5)])
WORLD = ActionSpace(MOVES[0], MOVES[-1], MOVES)
STARTS, GOALS = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0]]), torch.tensor([[2.0, 1.0], [3.0, -1.0], [-1.0, 0.0]])
KEY = Key.of(0, "plan").fold(torch.arange(3))


def component(kind: str, name: str) -> Any:
    return lab.installed().find(kind, name).load()


def seen(place: Tensor) -> Batch:
    """One look at B places."""
    return {"proprio": place[:, None]}


def posed(
    trained: Trained, levels: dict[str, int], starts: Tensor = STARTS, goals: Tensor = GOALS, fence: bool = False
) -> control.Problem:
    """So many tasks, for levels with so many steps each."""
    made = lab.restored(trained("planning")).stack.eval()
    made.levels["leap"].macro_action.seen[:9] = torch.cat((MOVES.repeat(1, 2), torch.zeros(9, 4)), dim=1)
    spec = made.levels["move"].spec
    costs: dict[str, list[control.Weighted]] = {
        label: [(component("cost", "distance")(spec, steps="last"), 1.0)] for label in levels
    }
    if fence:
        costs["move"].append((component("cost", "fence")(spec, low=(0.75, 0.75), high=(1.25, 1.25)), 1.0))
    return control.problem(made, "world", levels, seen(starts), seen(goals), costs, WORLD)


def walked(actions: Tensor, start: Tensor = STARTS) -> Tensor:
    """(B, K, A) -> where each step really leads, (B, K, 2)."""
    return start[:, None] + actions.cumsum(dim=1)


def within(places: Tensor) -> Tensor:
    """(B,): whether any place is behind the fence."""
    return ((places - 1).abs() < 0.25).all(dim=-1).any(dim=1)


def test_a_beam_finds_the_way_to_the_goal(trained: Trained) -> None:
    """P33, P35: within bounds, and at the cost that is told."""
    problem = posed(trained, {"move": 4})
    plan = component("planner", "beam")(width=9).plan(problem, None, KEY)
    torch.testing.assert_close(walked(plan.actions)[:, -1], GOALS, atol=0.02, rtol=0)
    assert plan.actions.shape == (3, 4, 2) and plan.cost.value.shape == (3, 1) and not plan.cost.violation.any()
    torch.testing.assert_close(problem.cost(problem.rollout(plan.actions[:, None])).value, plan.cost.value)
    assert (plan.actions >= WORLD.low).all() and (plan.actions <= WORLD.high).all()


def test_a_guardrail_comes_before_every_value(trained: Trained) -> None:
    """The first way that is found from (0, 0) to (2, 1) leads through (1, 1)."""
    beam = component("planner", "beam")(width=40)
    free, fenced = (beam.plan(posed(trained, {"move": 4}, fence=fence), None, KEY) for fence in (False, True))
    assert within(walked(free.actions)).tolist() == [True, False, False] and not within(walked(fenced.actions)).any()
    torch.testing.assert_close(walked(fenced.actions)[:, -1], GOALS, atol=0.02, rtol=0)
    assert not fenced.cost.violation.any()


def test_a_cost_orders_by_violation_and_then_by_value() -> None:
    cost = Cost(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
    assert order(cost).tolist() == [[2, 0, 3, 1]]


def test_the_same_key_gives_the_same_plan_whatever_is_planned_beside_it(trained: Trained) -> None:
    """P37: a batch of tasks is so many single tasks."""
    beam = component("planner", "beam")(width=4, moves=8)
    problem = posed(trained, {"move": 3})
    free = control.replace(problem, space=ActionSpace(WORLD.low, WORLD.high))
    plan = beam.plan(free, None, KEY)
    assert torch.equal(plan.actions, beam.plan(free, None, KEY).actions)
    alone = control.replace(posed(trained, {"move": 3}, STARTS[1:2], GOALS[1:2]), space=ActionSpace(WORLD.low, WORLD.high))
    torch.testing.assert_close(plan.actions[1:2], beam.plan(alone, None, Key(KEY.word[1:2])).actions)
    assert not torch.equal(plan.actions, beam.plan(free, None, KEY.fold(1)).actions)


def by_waypoints() -> Any:
    return component("planner", "by_waypoints")(inner=lambda: component("planner", "beam")(width=40))


def test_moves_reach_for_the_waypoints_of_leaps(trained: Trained) -> None:
    problem = posed(trained, {"move": 4, "leap": 2})
    assert problem.above is not None
    plan = by_waypoints().plan(problem, None, KEY)
    far = component("planner", "beam")(width=40).plan(problem.above, None, KEY)
    waypoint, end = problem.above.rollout(far.actions[:, None]).tokens[:, :, 0].detach().unbind(dim=1)
    assert plan.actions.shape == (3, 4, 2)
    torch.testing.assert_close(walked(plan.actions)[:, -1], waypoint, atol=0.05, rtol=0)
    torch.testing.assert_close(end, GOALS, atol=0.05, rtol=0)


def test_one_leap_after_the_other_leads_to_the_goal(trained: Trained) -> None:
    place = STARTS
    for leaps in (2, 1):
        plan = by_waypoints().plan(posed(trained, {"move": 4, "leap": leaps}, place), None, KEY)
        place = walked(plan.actions, place)[:, -1]
    torch.testing.assert_close(place, GOALS, atol=0.05, rtol=0)


def test_guardrails_hold_on_the_way_to_a_waypoint(trained: Trained) -> None:
    starts, goals = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.5, 1.5]])
    plans = []
    for fence in (False, True):
        problem = posed(trained, {"move": 4, "leap": 1}, starts, goals, fence)
        plans.append(walked(by_waypoints().plan(problem, None, Key(KEY.word[:1])).actions, starts))
    assert [within(places).item() for places in plans] == [True, False]
    torch.testing.assert_close(plans[1][:, -1], goals, atol=0.05, rtol=0)


def test_anchors_are_macro_actions_of_chunks_that_were_seen(trained: Trained) -> None:
    made = lab.restored(trained("planning"))
    level = made.stack.levels["leap"]
    space = control.space(made.stack, "leap", WORLD)
    rows = level.macro_action.seen.view(12, 4, 2).sum(1) * level.macro_action.gain
    torch.testing.assert_close(space.anchors, rows)
    assert torch.equal(space.low, space.anchors.amin(0)) and rows.abs().sum() > 0
    assert control.space(made.stack, "move", WORLD) is WORLD


def test_candidates_of_a_task_lie_next_to_one_another(trained: Trained) -> None:
    problem = posed(trained, {"move": 1})
    actions = MOVES.view(1, 9, 1, 2).expand(3, -1, -1, -1)
    cost = problem.cost(problem.rollout(actions))
    ends = STARTS[:, None] + MOVES
    torch.testing.assert_close(cost.value, (ends - GOALS[:, None]).square().mean(-1), atol=0.05, rtol=0.05)


def test_weights_of_costs_are_the_tasks_own(trained: Trained) -> None:
    problem = posed(trained, {"move": 1})
    ((term, _),) = problem.costs
    weighted = control.replace(problem, costs=[(term, torch.tensor([1.0, 0.0, 2.0]))])
    trajectory = problem.rollout(MOVES.view(1, 9, 1, 2).expand(3, -1, -1, -1))
    plain, given = problem.cost(trajectory).value, weighted.cost(trajectory).value
    torch.testing.assert_close(given, plain * torch.tensor([[1.0], [0.0], [2.0]]))


def test_every_level_is_perceived_up_to_now(trained: Trained) -> None:
    made = lab.restored(trained("h_jepa"))
    batch = lab.batches(made)["world"]
    some = {"frames": batch["frames"][:, :15], "actions": batch["actions"][:, :14]}
    known = control.perceived(made.stack, "world", some)
    ticks = [known[label].time[0].tolist() for label in ("frame", "moment", "scene")]
    assert ticks == [list(range(15)), [2, 4, 6, 8, 10, 12, 14], [8, 14]]
    whole = control.perceived(made.stack, "world", batch)
    for label, states in whole.items():
        expected: States = made.stack.states(label, "world", batch)
        torch.testing.assert_close(states.tokens, expected.tokens)
        assert torch.equal(states.time, expected.time)


def test_what_cannot_be_planned_is_refused(trained: Trained) -> None:
    with pytest.raises(Mistake, match="too little is observed for level 'moment'"):
        made = lab.restored(trained("h_jepa"))
        one = {"frames": lab.batches(made)["world"]["frames"][:, :1]}
        control.problem(made.stack, "world", {"moment": 2}, one, None, {}, WORLD)
    with pytest.raises(Mistake, match="level 'clip' cannot be planned with: it has no start, step, rollout"):
        made = lab.restored(trained("masked_under_forecast"))
        control.problem(made.stack, "video", {"clip": 2}, lab.batches(made)["video"], None, {}, WORLD)
    with pytest.raises(Mistake, match="level 'scene' reads moment, so 'frame' alone cannot reach for it"):
        made = lab.restored(trained("h_jepa"))
        control.problem(made.stack, "world", {"frame": 2, "scene": 2}, lab.batches(made)["world"], None, {}, WORLD)
