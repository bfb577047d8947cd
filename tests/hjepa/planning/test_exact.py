"""Levels whose model is the world itself: what they foresee is what happens, as they perceive it, and planners see nothing else new."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from planned import PLANNER, STUDY, made, setting
from torch import Tensor

from hjepa import control, planning, registry
from hjepa.compose import make_sources, streams_of
from hjepa.contracts import Batch, States
from hjepa.errors import Mistake
from hjepa.planning import Setting, episodes, exact, maps
from hjepa.planning.exact import Exact
from hjepa.stack import Stack
from hjepa.study import parse
from hjepa_control.beam import Beam
from hjepa_control.gradient import Gradient
from hjepa_control.icem import Icem

CERTAIN = {"environment": {"name": "two_rooms", "rebound": 0}, "oracle": {}}
COSTS = {label: {"name": "distance", "level": label} for label in ("state", "room")}
LEVELS: dict[str, Any] = {"horizon": {"state": 4, "room": 2}, "costs": COSTS}
TOP_DOWN: dict[str, Any] = LEVELS | {"planner": {"name": "hierarchical", "inner": PLANNER}}


def windowed(window: int, **changes: Any) -> Setting:
    """The level `room` sees so many states of the one below at a time; it has one for every second of them."""
    raw = deepcopy(STUDY)
    raw["levels"]["room"]["window"] = window
    raw["plan"] |= CERTAIN | LEVELS | changes
    study = parse(raw, registry.load())
    study.complain()
    return Setting(study, Stack(study, streams_of(make_sources(study))).eval().requires_grad_(False), torch.device("cpu"))


def under_way(found: Setting, steps: int = 3) -> Batch:
    """What is remembered after so many steps of the world."""
    memory, draw = found.memory(found.ways["planned"]), torch.Generator().manual_seed(0)
    seen = episodes.standing(found.world.reset(found.tasks), memory, 2)
    for _ in range(steps):
        seen = further(found, seen, found.world.actions.high * (2 * torch.rand(len(found.tasks), 2, generator=draw) - 1))
    return {name: value[:, -memory:] for name, value in seen.items()} | {"actions": seen["actions"][:, steps:]}


def further(found: Setting, seen: Batch, action: Tensor) -> Batch:
    """What has been seen and done, after one more action (B, A)."""
    more = found.world.step(action)[0] | {"actions": action[:, None]}
    return {name: torch.cat((value, more[name]), dim=1) for name, value in seen.items()}


def posed(found: Setting, observed: Batch, label: str) -> Exact:
    """The level of that label."""
    problem: control.Problem | None = found.posed(found.ways["planned"], observed, 50)
    while problem is not None and problem.node.label != label:
        problem = problem.above
    assert isinstance(problem, Exact)
    return problem


def candidates(problem: Exact, count: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return problem.space.high * (2 * torch.rand(problem.batch, count, 4, len(problem.space.low), generator=draw) - 1)


def come_true(found: Setting, problem: Exact, actions: Tensor) -> States:
    """What the level perceives after actions (B, K, A) are done."""
    whole = problem.observed
    for action in actions.reshape(problem.batch, -1, 2).unbind(1):
        whole = further(found, whole, action)
    states = control.perceived(problem.stack, problem.source, whole)[problem.node.label]
    return states.slice(states.steps - actions.shape[1], states.steps)


@pytest.mark.parametrize(("label", "window"), [("state", 2), ("room", 1), ("room", 2), ("room", 3)])
def test_what_is_foreseen_is_what_is_perceived_when_it_is_done(label: str, window: int) -> None:
    found = windowed(window, exact=["state", "room"])
    for candidate in range(3):
        problem = posed(found, under_way(found), label)
        actions = candidates(problem)
        foreseen = problem.rollout(actions)
        mine = torch.arange(candidate, 3 * problem.batch, 3)
        true = come_true(found, problem, actions[:, candidate])
        torch.testing.assert_close(foreseen.tokens[mine], true.tokens)
        assert foreseen.tokens.std(dim=1).min() > 0
        clock = 1 if label == "state" else 2
        assert torch.equal(foreseen.time[0], problem.start.time[0, -1] + clock * torch.arange(1, 5))


def test_an_action_is_all_that_is_done_in_the_world_in_one_step_of_the_level() -> None:
    found = windowed(2, exact=["room"], reach=0.5)
    problem = posed(found, under_way(found), "room")
    assert problem.space.joined == 2
    assert torch.equal(problem.space.high, found.world.actions.high.repeat(2) / 2)
    lowest = found.posed(found.ways["planned"], problem.observed, 50)
    assert not isinstance(lowest, Exact) and lowest.above is not None


def test_actions_of_a_level_with_macro_actions_are_those_of_the_world() -> None:
    raw = deepcopy(STUDY)
    raw["levels"]["room"]["macro_action"] = "sum"
    raw["plan"] |= CERTAIN | {"horizon": {"room": 2}, "exact": ["room"], "costs": {"goal": COSTS["room"]}}
    study = parse(raw, registry.load())
    found = Setting(study, Stack(study, streams_of(make_sources(study))).eval(), torch.device("cpu"))
    assert len(posed(found, under_way(found), "room").space.low) == 4
    assert found.act("planned").record.reached.shape == (3, 4)


def test_states_that_were_perceived_their_goals_and_costs_are_those_of_the_level() -> None:
    learned, world = windowed(2), windowed(2, exact=["state", "room"])
    observed = under_way(world)
    under_way(learned)
    ours, theirs = (found.posed(found.ways["planned"], observed, 50) for found in (world, learned))
    trajectory = ours.rollout(candidates(posed(world, observed, "state")))
    for mine, its in ((ours, theirs), (ours.above, theirs.above)):
        assert torch.equal(mine.now.tokens, its.now.tokens) and torch.equal(mine.goal.tokens, its.goal.tokens)  # type: ignore
        assert (mine.batch, mine.horizon, mine.at_once) == (its.batch, its.horizon, its.at_once)  # type: ignore[union-attr]
    assert torch.equal(ours.cost(trajectory).value, theirs.cost(trajectory).value)
    waypoint = ours.above.now  # type: ignore[union-attr]
    towards = ours.towards(waypoint)
    assert isinstance(towards, Exact) and towards.horizon == 2
    assert torch.equal(towards.cost(trajectory).value, theirs.towards(waypoint).cost(trajectory).value)


@pytest.mark.parametrize("room", [1, 100_000, 1_000_000])
def test_no_more_is_drawn_than_is_looked_at_and_little_at_a_time(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A level that sees every second state alone needs every second picture alone."""
    found = windowed(1, exact=["room"])
    problem = posed(found, under_way(found), "room")
    actions = candidates(problem)
    whole, drawn = problem.rollout(actions), list[tuple[int, Sequence[int]]]()
    world, foreseen = found.world, found.world.foreseen

    def counted(moves: Tensor, steps: Sequence[int]) -> Batch:
        seen = foreseen(moves, steps)
        drawn.append((len(seen["frames"]) * len(steps), steps))
        return seen

    monkeypatch.setattr(world, "foreseen", counted)
    monkeypatch.setattr(exact, "ROOM", room)
    torch.testing.assert_close(problem.rollout(actions).tokens, whole.tokens)
    assert sum(count for count, _ in drawn) == 3 * 3 * 4
    assert {step for _, steps in drawn for step in steps} == {2, 4, 6, 8}
    picture = 4 * 2 * 65 * 65
    assert max(count for count, _ in drawn) <= max(problem.batch, room // picture)
    assert len(drawn) == {1: 12, 100_000: 12, 1_000_000: 2}[room]


def test_no_level_is_encoded_above_the_one_that_foresees(monkeypatch: pytest.MonkeyPatch) -> None:
    found = windowed(1, exact=["state"])
    problem, asked = posed(found, under_way(found), "state"), list[str]()
    for label, level in problem.stack.levels.items():
        monkeypatch.setattr(level, "encode", lambda below, label=label, own=level.encode: asked.append(label) or own(below))
    problem.rollout(candidates(problem))
    assert set(asked) == {"state"}


@pytest.mark.parametrize("label", ["state", "room"])
def test_steps_one_at_a_time_are_a_rollout(label: str) -> None:
    found = windowed(3, exact=["state", "room"])
    problem = posed(found, under_way(found), label)
    actions = candidates(problem, 1)
    carry, states = problem.begin(), []
    for action in actions[:, 0].unbind(1):
        state, carry = problem.step(carry, action)
        states.append(state)
    rolled = problem.rollout(actions)
    torch.testing.assert_close(torch.cat([state.tokens for state in states], dim=1), rolled.tokens)
    assert torch.equal(torch.cat([state.time for state in states], dim=1), rolled.time)


@pytest.mark.parametrize("planner", [Icem(samples=6, elites=2, iterations=2), Beam(width=2, moves=3)], ids=["icem", "beam"])
@pytest.mark.parametrize("label", ["state", "room"])
def test_the_cost_of_a_plan_is_what_it_comes_to(planner: Any, label: str) -> None:
    """P35; and what it comes to in the world."""
    found = windowed(2, exact=["state", "room"])
    problem = posed(found, under_way(found), label)
    plan = planner.plan(problem, None, found.key)
    again = problem.cost(problem.rollout(plan.actions[:, None]))
    torch.testing.assert_close(again.value, plan.cost.value)
    torch.testing.assert_close(problem.cost(come_true(found, problem, plan.actions)).value, plan.cost.value)


@pytest.mark.parametrize("labels", [["room"], ["state"], ["state", "room"]])
def test_levels_act_with_an_exact_one_among_them(labels: list[str]) -> None:
    found = setting(**CERTAIN, **TOP_DOWN, exact=labels)
    acted = found.act("planned")
    assert acted.record.reached.shape == (3, 4)
    assert set(acted.policy.tally) == {0, 1}  # type: ignore[attr-defined]
    assert acted.scores["gigaflop"] > 0
    assert torch.equal(acted.record.position, setting(**CERTAIN, **TOP_DOWN, exact=labels).act("planned").record.position)
    learned = setting(**CERTAIN, **TOP_DOWN).act("planned")
    assert not torch.equal(acted.record.position, learned.record.position)
    assert acted.scores["evaluations"] == learned.scores["evaluations"]


def test_nothing_is_a_surprise_to_whom_the_world_is_its_own_model() -> None:
    found = setting(**CERTAIN, **TOP_DOWN, exact=["state", "room"], beside={"learned": {"exact": []}})
    acted = {name: found.act(name).scores for name in ("planned", "learned")}
    assert acted["planned"]["surprise"] < 1e-6 < 0.01 < acted["learned"]["surprise"]
    assert acted["planned"]["promised"] == pytest.approx(acted["planned"]["paid"], rel=1e-4)


def test_what_was_promised_and_what_came_are_judged_by_what_was_known_before() -> None:
    """Where a level above that looks back judges: the state from which it was promised is in its window, and nothing that came later."""
    found = windowed(2, costs={"goal": COSTS["room"]}, replan=1)
    policy, observed = found.policies()["planned"](), under_way(found)
    action = policy(observed, 50)[:, 0]
    earlier, expected = policy.expected  # type: ignore[attr-defined]
    policy(further(found, observed, action), 49)
    now = policy.expected[0].now  # type: ignore[attr-defined]
    room = found.stack.level("room")  # type: ignore[union-attr]
    for state, cost in zip((expected, now), policy.costs[0]):  # type: ignore[attr-defined]
        window = States(torch.cat((earlier.now.tokens, state.tokens), dim=2), state.time)
        torch.testing.assert_close(cost, earlier.above.cost(room.encode(window)).value[:, 0])


def test_what_a_room_looks_like_is_the_same() -> None:
    world, learned = (
        maps.of_task(setting(**CERTAIN, **LEVELS, exact=labels), 1, (65, 65)) for labels in (["state", "room"], [])
    )
    assert world is not None and learned is not None
    assert torch.equal(world.cost, learned.cost) and len(world.states) == 2


# --- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"exact": ["room"]}, "plan.exact", "'room' does not plan (there are: state)"),
        ({"exact": ["stat"]}, "plan.exact", "'stat' does not plan, did you mean 'state'? (there are: state)"),
        ({"exact": "state"}, "plan.exact", "a valid list"),
        ({"horizon": {}, "exact": ["state"]}, "plan.exact", "(there are: none)"),
        ({"beside": {"x": {"exact": ["room"]}}}, "plan.beside.x.exact", "'room' does not plan (there are: state)"),
        ({"beside": {"x": {"oracle": {1: 2}, "exact": ["state"]}}}, "plan.beside.x.exact", "(there are: none)"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(changes: dict[str, Any], path: str, said: str) -> None:
    problems = made(**changes).problems
    assert any(problem.path.startswith(path) and said in problem.message for problem in problems)


def test_read_again_what_is_resolved_is_the_same() -> None:
    beside = {"low": {"exact": ["state"]}, "flat": {"horizon": {"state": 2}}, "truth": {"oracle": {1: 3}}}
    costs = COSTS | {"true": {"name": "distance", "level": "world"}}
    study = made(**TOP_DOWN | {"costs": costs}, exact=["room"], oracle={}, beside=beside)
    assert not study.problems
    written = study.resolved()
    assert written["plan"]["exact"] == ["room"] and written["plan"]["beside"]["low"] == {"exact": ["state"]}
    again = parse(written, registry.load())
    assert not again.problems + planning.problems(again)
    assert again.resolved() == written
    assert study.plan is not None and again.plan is not None
    assert {name: way.written() for name, way in again.plan.ways().items()} == {
        name: way.written() for name, way in study.plan.ways().items()
    }


def test_a_way_that_plans_with_other_levels_does_so_in_what_they_learned() -> None:
    found = setting(**CERTAIN, **TOP_DOWN, exact=["room"], beside={"flat": {"horizon": {"state": 2}, "planner": PLANNER}})
    assert not isinstance(found.posed(found.ways["flat"], under_way(found), 50), Exact)


def test_a_world_that_does_not_say_what_would_be_seen_is_refused_before_anybody_acts() -> None:
    pytest.importorskip("gymnasium")
    world = {"environment": {"name": "gymnasium", "id": "MountainCarContinuous-v0"}, "oracle": {}}
    costs = {"goal": {"name": "distance", "level": "state"}}
    with pytest.raises(Mistake, match=r"plan\.exact: gymnasium does not say what would be seen"):
        setting(**world, costs=costs, exact=["state"])
    with pytest.raises(Mistake, match=r"plan\.beside\.x\.exact: gymnasium"):
        setting(**world, costs=costs, beside={"x": {"exact": ["state"]}})


GRADIENT = {"name": "gradient", "iterations": 1, "starts": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"planner": GRADIENT, "exact": ["state"]}, r"plan\.planner: level 'state' has the world itself as its model"),
        ({"beside": {"x": {"planner": GRADIENT, "exact": ["state"]}}}, r"plan\.beside\.x\.planner: level 'state'"),
        ({"planner": {"name": "hierarchical", "inner": PLANNER, "upper": GRADIENT}, "exact": ["room"]}, "level 'room'"),
        ({"planner": {"name": "hierarchical", "inner": GRADIENT, "upper": PLANNER}, "exact": ["state"]}, "level 'state'"),
    ],
)
def test_a_planner_that_follows_gradients_there_is_refused_before_anybody_acts(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Mistake, match=said):
        setting(**CERTAIN, **LEVELS | changes)


def test_a_planner_that_follows_gradients_at_levels_that_have_some_is_not_refused() -> None:
    """It is not said of planners, but seen of them: at which level one follows gradients only shows when it plans."""
    below = {"name": "hierarchical", "inner": GRADIENT, "upper": PLANNER}
    found = setting(**CERTAIN, **LEVELS, planner=below, exact=["room"], beside={"flat": {"planner": GRADIENT}})
    assert all(found.act(name).record.reached.shape == (3, 4) for name in ("planned", "flat"))


def test_a_planner_that_follows_gradients_is_refused() -> None:
    found = windowed(2, exact=["state"])
    with pytest.raises(Mistake, match=r"level 'state' has the world itself as its model: .* no gradient"):
        Gradient().plan(posed(found, under_way(found), "state"), None, found.key)
