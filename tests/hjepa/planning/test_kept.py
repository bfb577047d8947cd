"""What is kept of acting, read again; runs with several seeds together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from planned import setting

from hjepa.planning import crossed, kept, paired, shown
from hjepa.planning.kept import Kept

DAMAGED = {"tasks": [], "away": None, "steps_to_goal": {}, "ways": ["planned"], "world": {}, "metrics": {}}
TASKS = [[0.0, 3.0], [0.0, 1.0], [0.0, 2.0]]


def run(ways: dict[str, int] | None = None, **reached: list[int]) -> Kept:
    """What one has left that reached these goals, by policy."""
    hits = {name: torch.tensor(hit).bool() for name, hit in reached.items()}
    return Kept(TASKS, torch.tensor([3.0, 1.0, 2.0]), ways or {}, {}, hits, {"plan/gigaflop": 2.0, "plan/flat_gigaflop": 3.0})


def test_what_was_kept_is_read_again(tmp_path: Path) -> None:
    found = setting(beside={"more": {"planner": {"samples": 8}}}, steps=40)
    acted = {name: found.act(name) for name in ("straight", "oracle")}
    shown.write(found, acted, tmp_path)
    read = kept.read(tmp_path)
    assert read is not None and read.distance is not None
    assert read.tasks == found.tasks.tolist() and len(read.tasks) == 3
    assert {name: hit.tolist() for name, hit in read.reached.items()} == {
        name: one.record.reached.any(1).tolist() for name, one in acted.items()
    }
    start, goal = found.world.reset(found.tasks)["position"], found.world.goal()["position"]
    assert read.distance.tolist() == pytest.approx((goal - start)[:, 0].norm(dim=-1).tolist())
    assert read.world["environment"]["name"] == "two_rooms" and read.world["steps"] == 40
    assert read.ways["oracle"]["planner"]["samples"] == 4 and read.ways["more"]["planner"]["samples"] == 8
    assert read.metrics["plan/oracle_success"] == acted["oracle"].scores["success"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", json.dumps({"tasks": [], "away": "far", "steps_to_goal": {}}), json.dumps(DAMAGED)]
)
def test_what_cannot_be_read_is_as_if_it_were_not_there(tmp_path: Path, text: str) -> None:
    (tmp_path / kept.FILE).write_text(text)
    assert kept.read(tmp_path) is None
    assert kept.read(tmp_path / "nowhere") is None


def test_all_tasks_of_all_seeds_count_together() -> None:
    runs = [run(planned=[1, 1, 0], flat=[0, 1, 0]), run(planned=[1, 1, 1], flat=[0, 1, 1])]
    found = kept.pooled(runs)
    assert found["planned"].each == pytest.approx([2 / 3, 1]) and found["flat"].each == pytest.approx([1 / 3, 2 / 3])
    whole, flat = found["planned"].scores, found["flat"].scores
    assert (whole["success"], whole["low"], whole["high"]) == (
        pytest.approx(5 / 6),
        *_ends(crossed.share(_hits(runs, "planned"))),
    )
    assert (whole["near"], whole["middle"], whole["far"]) == (1.0, 0.5, 1.0)
    assert (flat["near"], flat["middle"], flat["far"]) == (1.0, 0.5, 0.0)
    assert "against" not in whole
    assert flat["against"] == pytest.approx(-1 / 3)
    more = crossed.difference(_hits(runs, "flat"), _hits(runs, "planned"))
    assert (flat["against_low"], flat["against_high"]) == (more["against_low"], more["against_high"])
    assert (flat["far_against"], flat["far_against_low"], flat["far_against_high"]) == (-1.0, *paired.interval(0, 2, 2))
    assert (whole["gigaflop"], flat["gigaflop"]) == (2.0, 3.0)


def _hits(runs: list[Kept], policy: str) -> torch.Tensor:
    return torch.stack([run.reached[policy] for run in runs])


def _ends(scores: dict[str, float]) -> tuple[float, float]:
    return scores["low"], scores["high"]


def test_only_those_are_pooled_that_acted_alike_in_all_runs() -> None:
    first = run({"planned": 1, "flat": 1}, planned=[1, 1, 1], flat=[1, 1, 1], straight=[0, 0, 0], once=[0, 0, 0])
    second = run({"planned": 1, "flat": 2}, planned=[1, 1, 1], flat=[1, 1, 1], straight=[0, 0, 1])
    assert list(kept.pooled([first, second])) == ["planned", "straight"]


def test_where_nothing_is_known_of_distances_and_nobody_planned_shares_are_told_all_the_same() -> None:
    one = Kept(TASKS, None, {}, {}, {"random": torch.tensor([True, False, False])}, {})
    (found,) = kept.pooled([one, one]).values()
    assert set(found.scores) == {"success", "low", "high"} and found.each == pytest.approx([1 / 3, 1 / 3])
