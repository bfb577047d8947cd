"""Where a stack stands, as a problem for planners, on levels with windows that overlap."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from hjepa import control, registry, study
from hjepa.contracts import ActionSpace, Batch, Cost, Spec, States
from hjepa.errors import Mistake
from hjepa.nn.states import followed
from hjepa.stack import Stack

PREDICTOR = {"name": "causal", "depth": 1, "heads": 2, "width": 8}
LEVEL: dict[str, Any] = {"name": "forecast", "predictor": PREDICTOR, "energy": "l2"}
STUDY: dict[str, Any] = {
    "data": {"world": {"name": "moving_digits"}},
    "levels": {
        "low": {**LEVEL, "encoder": {"name": "latent_mlp", "width": 4, "hidden": 8}},
        "high": {**LEVEL, "stride": 2, "window": 3, "encoder": {"name": "latent_mlp", "width": 3, "hidden": 8}},
    },
}
WORLD = ActionSpace(-torch.ones(2), torch.ones(2))


class Far:
    """How far the last state is from the goal in its first dimension, and a little of where it began; a violation where it is beyond."""

    def __call__(self, trajectory: States, goal: States | None, start: States) -> Cost:
        end = trajectory.tokens[:, -1, 0, 0] - (0 if goal is None else goal.tokens[:, 0, 0, 0])
        return Cost(end.abs() + 0.1 * start.tokens[:, 0, 0, 0], end.clamp(min=0))


@pytest.fixture(scope="module")
def world() -> Stack:
    plan = study.parse(STUDY, registry.load())
    plan.complain()
    return Stack(plan, {"world": {"places": Spec(width=2, ticks=tuple(range(10)), actions=2)}}).eval()


def seen(steps: int, batch: int = 3) -> Batch:
    drawn = torch.Generator().manual_seed(0)
    places, actions = (torch.randn(batch, max(10, steps) - less, 2, generator=drawn) for less in (0, 1))
    return {"places": places[:, :steps], "actions": actions[:, : steps - 1]}


def moves(*shape: int) -> Tensor:
    return torch.rand(*shape, 2, generator=torch.Generator().manual_seed(1))


def posed(world: Stack, *labels: str, steps: int = 6, goal: Batch | None = None) -> control.Problem:
    costs: dict[str, list[control.Weighted]] = {label: [(Far(), 1.0)] for label in labels}
    return control.problem(world, "world", dict.fromkeys(labels, 4), seen(steps), goal, costs, WORLD)


def test_the_last_window_of_every_level_ends_now(world: Stack) -> None:
    ends = {steps: control.perceived(world, "world", seen(steps)) for steps in (2, 3, 6, 7)}
    assert {steps: {label: s.time[0].tolist() for label, s in known.items()} for steps, known in ends.items()} == {
        2: {"low": [0, 1]},
        3: {"low": [0, 1, 2], "high": [2]},
        6: {"low": [0, 1, 2, 3, 4, 5], "high": [3, 5]},
        7: {"low": [0, 1, 2, 3, 4, 5, 6], "high": [2, 4, 6]},
    }
    assert ends[6]["high"].actions.shape == (3, 1, 4)


def test_no_level_is_encoded_that_nobody_asks_for_nor_is_above_one(world: Stack) -> None:
    for label, needed in (("low", ["low"]), ("high", ["low", "high"])):
        known = control.perceived(world, "world", seen(6), [label])
        assert list(known) == needed
        assert torch.equal(known[label].tokens, control.perceived(world, "world", seen(6))[label].tokens)


def test_what_a_stack_sees_in_training_is_what_it_perceives(world: Stack) -> None:
    batch = seen(10) | {"ids": torch.arange(3), "epoch": torch.zeros(3, dtype=torch.int64)}
    known = control.perceived(world, "world", seen(9))
    torch.testing.assert_close(known["low"].tokens, world.states("low", "world", batch).tokens[:, :9])
    torch.testing.assert_close(known["high"].tokens, world.states("high", "world", batch).tokens)


def test_an_action_of_a_level_is_all_that_is_done_in_its_step(world: Stack) -> None:
    assert control.space(world, "low", WORLD) is WORLD
    assert control.space(world, "high", WORLD).high.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("macro", "joined"), [(None, [2, 4, 12]), ("sum", [2, 1, 3])])
def test_actions_side_by_side_are_those_of_the_world_or_macro_actions_of_the_level_below(
    macro: str | None, joined: list[int]
) -> None:
    raw, below = deepcopy(STUDY), {"name": "latent_mlp", "width": 3, "hidden": 8}
    raw["levels"] = {label: {**LEVEL, "stride": stride, "encoder": below} for label, stride in (("a", 2), ("b", 2), ("c", 3))}
    raw["levels"]["b"] |= {"macro_action": macro} if macro else {}
    plan = study.parse(raw, registry.load())
    plan.complain()
    made = Stack(plan, {"world": {"places": Spec(width=2, ticks=tuple(range(40)), actions=2)}})
    spaces = [control.space(made, label, WORLD) for label in ("a", "b", "c")]
    assert [space.joined for space in spaces] == joined
    assert [len(space.low) for space in spaces] == ([4, 8, 24] if macro is None else [4, 4, 12])
    horizons, done = dict.fromkeys("abc", 2), [torch.rand(3, len(space.low)) for space in spaces]
    lowest = control.problem(made, "world", horizons, seen(40), None, {}, WORLD)
    middle, found = lowest.above, lowest.unfolded(done[1])
    assert middle is not None and middle.above is not None
    if macro:
        assert found is None, "many chunks have the same sum"
    else:
        assert found is not None and torch.equal(found, done[1].view(3, 2, 4))
    above = middle.unfolded(done[2])
    assert above is not None and torch.equal(above, done[2].view(3, 3, len(spaces[1].low)))
    with pytest.raises(Mistake, match="no level above 'c' is planned with"):
        middle.above.unfolded(done[2])


def test_as_many_trajectories_are_made_at_once_as_have_room(world: Stack) -> None:
    """By hand: a state of `low` has 4 numbers of 4 bytes, one of `high` 3; what is on another device than the CPU keeps all 4 steps."""
    low, high = (posed(world, label) for label in ("low", "high"))
    assert (low.at_once, high.at_once) == (2**22 // 16, 2**22 // 12)

    def elsewhere(width: int) -> control.Problem:
        return control.replace(low, start=control.replace(low.start, tokens=torch.empty(3, 6, 1, width, device="meta")))

    assert elsewhere(4).at_once == 2**32 // 4 // 16
    assert elsewhere(2**30).at_once == 1


def test_a_plan_is_seen_from_above_through_windows_that_end_with_it(world: Stack) -> None:
    problem, actions = posed(world, "low", "high"), moves(3, 2, 4)
    trajectory = problem.rollout(actions)
    whole = torch.cat((problem.start.tokens.repeat_interleave(2, dim=0), trajectory.tokens), dim=1)[:, :, 0]
    for steps in (1, 2, 3, 4):
        above = problem.up(trajectory.slice(0, steps))
        ends = list(range(5 + steps, 5, -2))[::-1]
        windows = torch.stack([whole[:, end - 2 : end + 1].flatten(1) for end in ends], dim=1)
        torch.testing.assert_close(above.tokens[:, :, 0], world.levels["high"].encoder.layers(windows))
        assert above.time[0].tolist() == ends


def test_steps_one_at_a_time_are_a_rollout(world: Stack) -> None:
    problem, actions = posed(world, "low"), moves(3, 1, 4)
    carry, found = problem.begin(), []
    for step in range(4):
        states, carry = problem.step(carry, actions[:, 0, step])
        found.append(states)
    rolled = problem.rollout(actions)
    torch.testing.assert_close(torch.cat([states.tokens for states in found], dim=1), rolled.tokens)
    assert torch.equal(torch.cat([states.time for states in found], dim=1), rolled.time)


def test_what_a_waypoint_costs_is_what_the_level_above_says(world: Stack) -> None:
    problem = posed(world, "low", "high", goal=seen(9))
    trajectory, waypoint = problem.rollout(moves(3, 5, 2)), control.perceived(world, "world", seen(7))["high"].slice(2, 3)
    towards = problem.towards(waypoint)
    assert (problem.horizon, towards.horizon) == (4, 2)
    rows = torch.arange(3).repeat_interleave(5)
    low, high = (control.perceived(world, "world", seen(6))[label] for label in ("low", "high"))
    own = Far()(trajectory, None, low.slice(5, 6).rows(rows))
    above = Far()(towards.up(trajectory), waypoint.rows(rows), high.slice(1, 2).rows(rows))
    cost = towards.cost(trajectory)
    torch.testing.assert_close(cost.value, (own.value + above.value).view(3, 5))
    torch.testing.assert_close(cost.violation, (own.violation + above.violation).view(3, 5))


def test_the_goal_is_the_last_state_that_it_shows(world: Stack) -> None:
    problem = posed(world, "high", goal=seen(9))
    assert problem.goal is not None
    assert torch.equal(problem.goal.tokens, control.perceived(world, "world", seen(9))["high"].tokens[:, -1:])


def test_what_cannot_be_planned_is_refused(world: Stack) -> None:
    with pytest.raises(Mistake, match=r"no level 'hihg', did you mean 'high'\? \(there are: low, high\)"):
        posed(world, "hihg")
    with pytest.raises(Mistake, match=r"too little is observed for level 'high': .* = 3 steps of 'low'"):
        posed(world, "high", steps=2)
    with pytest.raises(Mistake, match="too little is shown of the goal for level 'high'"):
        posed(world, "high", goal=seen(2))
    with pytest.raises(Mistake, match="no level above 'low' is planned with"):
        posed(world, "low").towards(control.perceived(world, "world", seen(3))["high"])
    with pytest.raises(Mistake, match=r"no level to plan with is named \(there are: low, high\)"):
        posed(world)
    ways = control.problem(world, "world", {"low": 4, "high": 4}, seen(6), None, {"low": [(Far(), 1.0)]}, WORLD)
    with pytest.raises(Mistake, match="nothing counts at 'high', so how far its waypoints are is not known"):
        ways.towards(control.perceived(world, "world", seen(7))["high"].slice(2, 3))


def test_where_nothing_counts_a_level_is_judged_by_what_counts_above(world: Stack) -> None:
    """And where something does, by that alone, until a waypoint is given."""
    costs: dict[str, list[control.Weighted]] = {"high": [(Far(), 1.0)]}
    goal = seen(6)
    ladder = control.problem(world, "world", {"low": 4, "high": 1}, seen(6), goal, costs, WORLD)
    trajectory = ladder.rollout(moves(3, 5, 4))
    assert ladder.above is not None
    assert torch.equal(ladder.cost(trajectory).value, ladder.above.cost(ladder.up(trajectory)).value)
    assert ladder.cost(trajectory).value.std() > 0
    own = posed(world, "low", "high", goal=goal)
    assert torch.equal(own.cost(trajectory).value, posed(world, "low", goal=goal).cost(trajectory).value)


def test_doubt_goes_where_states_go(world: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step as in a rollout, and what is seen is not doubted."""
    level = world.level("low")
    monkeypatch.setattr(type(level), "doubt", lambda self, carry: carry["last"][..., 0, 0].abs()[:, None])
    problem = posed(world, "low")
    assert not problem.now.doubt.any()
    actions = moves(3, 1, 2)
    rolled, carry, parts = problem.rollout(actions), problem.begin(), []
    for action in actions[:, 0].unbind(1):
        states, carry = problem.step(carry, action)
        parts.append(states)
    torch.testing.assert_close(followed(*parts).doubt, rolled.doubt)
    assert rolled.doubt.shape == (3, 2, 1) and rolled.doubt.all()
    assert followed(problem.start, rolled).doubt is None
