"""Acting in a world: who is asked when, what is seen, what is counted, and what came of it."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from line import Line, Shooting, Truth
from torch import Tensor

from hjepa.contracts import Batch, Cost, Plan, PlanningProblem
from hjepa.keys import THIRDS
from hjepa.planning import episodes
from hjepa.planning.episodes import Anything, Planned, Record, Straight, Watched
from hjepa.randomness import Key

TASKS = torch.tensor([[0.0, 3.0], [0.0, -1.0], [0.0, 50.0]])


class Told:
    """Goes to the right, so many steps at a time, and remembers what it was shown."""

    def __init__(self, further: int) -> None:
        self.further, self.seen, self.left = further, [], []  # type: ignore[var-annotated]

    def __call__(self, observed: Batch, left: int) -> Tensor:
        self.seen.append(observed)
        self.left.append(left)
        return torch.ones(len(observed["frames"]), self.further, 1)


@pytest.mark.parametrize(("further", "every", "left"), [(5, 3, [7, 4, 1]), (2, 3, [7, 5, 3, 1]), (1, 1, list(range(7, 0, -1)))])
def test_it_is_asked_when_its_time_is_up_or_it_said_no_further(further: int, every: int, left: list[int]) -> None:
    told = Told(further)
    episodes.acted(Line(), TASKS, told, 7, every)
    assert told.left == left


def test_the_last_steps_are_seen_and_what_was_done_between_them() -> None:
    told = Told(1)
    episodes.acted(Line(), TASKS, told, 5, 1, memory=3)
    places = [seen["position"][0, :, 0].tolist() for seen in told.seen]
    done = [seen["actions"][0, :, 0].tolist() for seen in told.seen]
    assert places == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert done == [[0, 0], [0, 1], [1, 1], [1, 1], [1, 1]]
    assert told.seen[0]["frames"].shape == (3, 3, 1, 4, 4)
    episodes.acted(Line(), TASKS, (alone := Told(1)), 2, 1)
    assert alone.seen[1]["actions"].shape == (3, 0, 1)


def test_of_few_tasks_is_kept_what_was_seen_and_of_all_where_they_were() -> None:
    record = episodes.acted(Line(), TASKS.repeat(4, 1), Told(1), 2, 1)
    assert [seen["frames"].shape for seen in record.frames] == [(episodes.SHOWN, 1, 1, 4, 4)] * 3
    assert [seen["frames"].untyped_storage().nbytes() for seen in record.frames] == [4 * 16 * episodes.SHOWN] * 3
    assert record.position is not None and record.position[..., 0].tolist() == [[0, 1, 2]] * 12


def test_what_stands_still_was_done_nothing_with() -> None:
    line = Line()
    seen = episodes.standing(line.reset(TASKS), 4, 1)
    assert seen["position"].shape == (3, 4, 1)
    assert seen["actions"].shape == (3, 3, 1)
    assert not seen["actions"].any()


def test_a_record_says_when_the_goal_was_reached_first_and_by_which_way() -> None:
    record = episodes.acted(Line(), TASKS, Told(1), 6, 1)
    assert record.first.tolist() == [3, 7, 7]
    assert record.travelled().tolist() == [3, 6, 6]
    found = episodes.scores(record)
    assert found["success"] == pytest.approx(1 / 3)
    assert found["at_the_end"] == 0
    assert found["steps"] == found["path"] == 3
    assert found["low"] < 1 / 3 < found["high"]


def test_where_no_goal_is_reached_there_is_no_time_and_no_way_to_it() -> None:
    found = episodes.scores(episodes.acted(Line(), TASKS[2:], Told(1), 4, 1))
    assert found["success"] == 0
    assert math.isnan(found["steps"])
    assert math.isnan(found["path"])


def test_without_a_position_there_is_no_way_to_tell_of() -> None:
    record = Record(torch.tensor([[False, True]]), [{"frames": torch.zeros(1, 1, 1, 4, 4)}] * 3)
    assert record.travelled() is None
    assert "path" not in episodes.scores(record)


@given(st.integers(1, 200), st.data())
def test_an_interval_holds_the_share_and_narrows(count: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, count))
    low, high = episodes.interval(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert high - low > (lambda ends: ends[1] - ends[0])(episodes.interval(10 * hits, 10 * count))


def test_an_interval_is_wilson_s() -> None:
    share, z = 0.3, 1.959964
    middle, half = share + z**2 / 200, z * math.sqrt(share * (1 - share) / 100 + z**2 / 40_000)
    ends = [(middle - half) / (1 + z**2 / 100), (middle + half) / (1 + z**2 / 100)]
    assert episodes.interval(30, 100) == pytest.approx(ends, abs=1e-6)


def test_goals_are_told_apart_by_how_far_they_are() -> None:
    tasks = torch.tensor([[0.0, end] for end in (9.0, 1.0, 5.0, 2.0, 6.0, 20.0)])
    record = episodes.acted(Line(), tasks, Told(1), 6, 1)
    assert thirds(record, tasks) == {"near": 1.0, "middle": 1.0, "far": 0.0}
    record = episodes.acted(Line(), tasks, Told(1), 5, 1)
    assert thirds(record, tasks) == {"near": 1.0, "middle": 0.5, "far": 0.0}
    found = episodes.by_distance(record.reached.any(1), (tasks[:, 1:] - tasks[:, :1]).norm(dim=-1))
    assert (found["middle_low"], found["middle_high"]) == episodes.interval(1, 2)
    assert (found["far_low"], found["far_high"]) == episodes.interval(0, 2)
    assert set(thirds(episodes.acted(Line(), tasks[:1], Told(1), 5, 1), tasks[:1])) == {"near"}


def thirds(record: Record, tasks: Tensor) -> dict[str, float]:
    """The shares alone."""
    found = episodes.by_distance(record.reached.any(1), (tasks[:, 1:] - tasks[:, :1]).norm(dim=-1))
    return {name: share for name, share in found.items() if name in THIRDS}


def test_straight_on_is_asked_at_every_step_and_arrives() -> None:
    line = Line()
    record = episodes.acted(line, TASKS[:2], Straight(line), 5, 5)
    assert record.first.tolist() == [3, 1]
    assert record.reached[:, -1].all()


def test_anything_at_random_is_within_its_bounds_and_a_matter_of_the_task_alone() -> None:
    key = Key.of(3).fold(torch.arange(3))
    acts = [Anything(Line().actions, one)({}, 9) for one in (key, Key(key.word[1:]))]
    assert (acts[0].abs() <= 1).all()
    assert torch.equal(acts[0][1:], acts[1])
    assert not torch.equal(acts[0][0], acts[0][1])


def posed(line: Line, horizon: int) -> Planned:
    def pose(observed: Batch, left: int) -> Truth:
        return line.truth(min(horizon, left), ())

    return Planned(line, Shooting(), pose, Key.of(1).fold(torch.arange(3)), every=2)


def test_a_planner_sees_the_plan_before_from_where_it_stands_now() -> None:
    line = Line()
    policy = posed(line, 6)
    plans: list[Tensor] = []
    episodes.acted(line, TASKS, lambda observed, left: plans.append(policy(observed, left)) or plans[-1], 6, 2)
    assert policy.planner.warm[0] is None
    assert torch.equal(policy.planner.warm[1].actions, plans[0][:, 2:])
    assert [plan.shape[1] for plan in plans] == [6, 4, 2]


def test_of_a_plan_that_is_shorter_than_the_time_between_two_all_is_done_and_no_more() -> None:
    """It is asked again when the plan has ended: of the plan above it, one step is done then, and not two."""

    class Short:
        def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
            cost = Cost(torch.zeros(3, 1), torch.zeros(3, 1))
            return Plan(torch.ones(3, 2, 1), cost, above=Plan(torch.arange(18.0).view(3, 6, 1), cost))

    line = Line()
    policy = replace(posed(line, 6), planner=Short(), every=4)
    episodes.acted(line, TASKS, policy, 2, 4)
    assert policy.warm is not None and policy.warm.above is not None
    assert policy.warm.actions.shape[1] == 0
    assert policy.warm.above.actions[0, :, 0].tolist() == [1, 2, 3, 4, 5]


def test_every_predicted_step_is_counted() -> None:
    line = Line()
    policy = posed(line, 6)
    episodes.acted(line, TASKS, policy, 6, 2)
    assert policy.tally == Counter({0: 3 * 8 * (6 + 4 + 2)})
    found = episodes.cost_of(policy, 3)
    assert found["evaluations"] == 8 * 12
    assert found["seconds"] > 0


def test_it_is_told_whether_any_candidate_of_the_first_decision_leads_to_the_goal() -> None:
    line = Line()
    policy = posed(line, 6)
    episodes.acted(line, torch.tensor([[0.0, 0.2], [0.0, 1.5], [0.0, 50.0]]), policy, 6, 2)
    assert policy.found.tolist() == [True, True, False]
    assert episodes.cost_of(policy, 3)["candidate"] == pytest.approx(2 / 3)


def test_looking_at_candidates_takes_no_time_of_a_decision() -> None:
    line, slow = Line(), 0.2
    policy = posed(line, 6)

    def reaches(plans: Tensor) -> Tensor:
        time.sleep(slow)
        return Line.reaches(line, plans)

    line.reaches = reaches  # type: ignore[method-assign]
    episodes.acted(line, TASKS, policy, 6, 6)
    assert policy.asked == 1 and 0 < policy.seconds < slow


def test_a_plan_of_slower_steps_is_unfolded_into_those_of_the_world() -> None:
    policy = posed(Line(), 2)
    policy.clock = 3
    chunks = torch.arange(12.0).view(1, 2, 6)
    assert policy._unfolded(chunks)[0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


def test_a_watched_problem_counts_each_level_for_itself() -> None:
    line = Line()
    line.reset(TASKS)
    tally: Counter[int] = Counter()
    watched = Watched(line.truth(4, (), above=line.truth(2, (), stride=4)), tally)
    watched.rollout(torch.zeros(3, 5, 4, 1))
    assert watched.above is not None
    watched.above.rollout(torch.zeros(3, 7, 2, 1))
    watched.towards(watched.above.rollout(torch.zeros(3, 1, 2, 1)).slice(0, 1)).step(watched.begin(), torch.zeros(3, 1))
    assert tally == {0: 3 * 5 * 4 + 3, 1: 3 * 7 * 2 + 3 * 2}
    watched.rollout(torch.zeros(3, 5, 4, 1, requires_grad=True))
    assert tally[0] == 3 * (3 * 5 * 4) + 3, "there and back"
    assert watched.above.above is None
    assert (watched.batch, watched.horizon) == (3, 4)


@pytest.mark.parametrize("drag", [0.0, 0.5, 0.9])
def test_a_world_that_does_otherwise_than_the_model_says_is_a_surprise(drag: float) -> None:
    """As a share of how far it has moved."""

    class Sticky(Line):
        def step(self, action: Tensor) -> tuple[Batch, Tensor]:
            return super().step((1 - drag) * action)

    line = Sticky()
    policy = posed(line, 6)
    record = episodes.acted(line, TASKS, policy, 6, 2)
    assert len(policy.surprises) == len(policy.costs) == 2
    wrong, moved = policy.surprises[0]
    torch.testing.assert_close(wrong, moved * (drag / (1 - drag)) ** 2)
    scores = episodes.cost_of(policy, 3)
    assert scores["surprise"] == pytest.approx((drag / (1 - drag)) ** 2, rel=1e-4, abs=1e-6)
    stood, end = record.position[:, [0, 2], 0], TASKS[:, 1]  # type: ignore[index]
    should, did = policy.costs[0]
    torch.testing.assert_close(did, (stood[:, 1] - end).abs())
    torch.testing.assert_close(
        should, (stood[:, 0] + (stood[:, 1] - stood[:, 0]) / (1 - drag) - end).abs(), atol=1e-4, rtol=1e-4
    )
    assert {name: scores[name] for name in ("promised", "paid")} == {
        name: pytest.approx(float(torch.stack(cost).median()))
        for name, cost in zip(("promised", "paid"), zip(*policy.costs, strict=True), strict=True)
    }
