"""Other ways to plan beside the first: what they are said to do otherwise, what is wrong with that, and what comes of it."""

from __future__ import annotations

import io
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from planned import PLANNER, STUDY, made, setting
from rich.console import Console

from hjepa import planning, registry
from hjepa.errors import Mistake
from hjepa.parts import Way
from hjepa.planning import shown
from hjepa.study import Study, parse, read
from hjepa.written import changed

ROOM = {"goal": {"name": "distance", "level": "room"}}
BESIDE: dict[str, Any] = {
    "more": {"planner": {"samples": 8}},
    "bare": {"planner": "icem"},
    "other": {"planner": {"name": "cem", "samples": 5, "elites": 3}},
    "upper": {"horizon": {"room": 2}, "costs": ROOM, "reach": 0.5},
    "truth": {"oracle": {1: 2}, "replan": 1},
    "both": {"horizon": {"state": 2}, "oracle": {1: 3}},
    "same": {},
}


def ways(study: Study) -> dict[str, Way]:
    assert not study.problems
    assert study.plan
    return study.plan.ways()


def test_what_a_way_does_not_say_is_as_in_the_plan() -> None:
    found = ways(made(beside=BESIDE))
    assert list(found) == ["oracle", "planned", *BESIDE]
    plan = found["planned"]
    assert found["more"].planner.options == plan.planner.options | {"samples": 8}
    assert found["bare"].planner.options == plan.planner.options
    assert found["other"].planner.options["iterations"] == 5 != plan.planner.options["iterations"]
    assert found["upper"].costs.keys() == {"goal"}
    assert found["upper"].planner == plan.planner
    assert (found["upper"].keys.replan, found["upper"].keys.reach) == (2, 0.5)
    assert (found["truth"].keys.replan, found["truth"].costs) == (1, plan.costs)


def test_a_way_plans_in_the_world_where_it_says_so_or_no_level_plans() -> None:
    found = {name: (way.keys.horizon, way.keys.oracle) for name, way in ways(made(beside=BESIDE)).items()}
    assert found["oracle"] == ({}, {1: 4})
    assert found["planned"] == found["more"] == found["same"] == ({"state": 3}, {})
    assert found["truth"] == ({}, {1: 2})
    assert found["upper"] == ({"room": 2}, {})
    assert found["both"] == ({"state": 2}, {})
    costs = {"true": {"name": "distance", "level": "world"}}
    alone = ways(made(horizon={}, costs=costs, beside={"same": {}, "long": {"oracle": {1: 9}}}))
    assert {name: way.keys.oracle for name, way in alone.items()} == {"oracle": {1: 4}, "same": {1: 4}, "long": {1: 9}}
    assert not any(way.keys.horizon for way in alone.values())


def test_read_again_what_is_resolved_is_the_same_and_follows_the_plan() -> None:
    study = made(beside=BESIDE)
    written = study.resolved()
    again = parse(yaml.safe_load(yaml.safe_dump(written)), registry.load())
    assert again.resolved() == written
    assert {name: way.written() for name, way in ways(again).items()} == {
        name: way.written() for name, way in ways(study).items()
    }
    assert "beside" not in made().resolved()["plan"]
    later = parse(changed(written, ["plan.planner.iterations=7", "plan.replan=4"], ("plan",), []), registry.load())
    found = ways(later)
    assert {name: way.planner.options["iterations"] for name, way in found.items()} == dict.fromkeys(found, 7) | {"other": 5}
    assert {name: way.keys.replan for name, way in found.items()} == dict.fromkeys(found, 4) | {"truth": 1}


@pytest.mark.parametrize(
    ("beside", "path", "said"),
    [
        ({"x": {"planer": "cem"}}, "plan.beside.x.planer", "did you mean 'planner'"),
        ({"x": {"steps": 3}}, "plan.beside.x.steps", "(allowed: horizon, exact, oracle, reach, replan, planner, costs)"),
        ({"x": {"environment": "two_rooms"}}, "plan.beside.x.environment", "unknown key"),
        ({"x": {"beside": {}}}, "plan.beside.x.beside", "unknown key"),
        ({"x": {"planner": {"sampels": 3}}}, "plan.beside.x.planner.sampels", "did you mean 'samples'"),
        ({"x": {"planner": {"name": "cme"}}}, "plan.beside.x.planner.name", "did you mean 'cem'"),
        ({"x": {"planner": None}}, "plan.beside.x.planner", "name one planner"),
        ({"x": {"replan": 0}}, "plan.beside.x.replan", "greater than or equal to 1"),
        ({"x": {"costs": {"goal": {"name": "distance"}}}}, "plan.beside.x.costs.goal.level", "required"),
        ({"x": {"costs": {"goal": {"name": "distance", "level": "stat"}, "place": {"name": "distance", "level": "state"}}}},
         "plan.beside.x.costs.goal.level", "did you mean 'state'? (there are: state, world)"),
        ({"x": {"horizon": {"rom": 3}}}, "plan.beside.x.horizon.rom", "did you mean 'room'?"),
        ({"x": {"horizon": {"rom": 3}, "costs": ROOM}}, "plan.beside.x.horizon.rom", "did you mean 'room'?"),
        ({"x": {"horizon": {"room": 3}}}, "plan.beside.x.costs", "nothing counts at 'room'"),
        ({"x": {"oracle": {}}}, "plan.beside.x", "nothing plans"),
        ({"x": {"oracle": {2: 3}}}, "plan.beside.x.oracle", "the lowest stride is 1, for what is done is said step by step; written: 2"),
        ({"x": {"oracle": {1: 8, 4: 4, 6: 3}}}, "plan.beside.x.oracle", "6 is no multiple of 4, the stride below it"),
        ({"x": {"oracle": {1: 3}, "costs": ROOM}}, "plan.beside.x.costs.goal.level", "'room' does not plan"),
        ({"x": {"horizon": {"room": 3}, "costs": ROOM | {"near": {"name": "distance", "level": "state"}}}},
         "plan.beside.x.costs.near.level", "'state' does not plan (there are: room, world)"),
        ({"x": None}, "plan.beside.x", "a mapping is needed; written: None"),
        ({"X": {}}, "plan.beside.X", "small letters"),
        ({"planned": {}}, "plan.beside.planned", "somebody acts under that name already (random, straight, oracle, planned)"),
        ({"far": {}}, "plan.beside.far", "names of others: no label ends in 'far' (near, middle, far, against); call it otherwise"),
        ({"x_near": {}}, "plan.beside.x_near", "no label ends in 'near'"),
        ({"x_against": {}}, "plan.beside.x_against", "no label ends in 'against'"),
        (["x"], "plan.beside", "a mapping label -> keys of `plan` that are different there is needed"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_way_is_said_once_with_its_place(beside: Any, path: str, said: str) -> None:
    found = made(beside=beside).problems
    assert [(problem.path, said in problem.message) for problem in found][:1] == [(path, True)]
    assert len(found) == 1 or path.endswith("costs.goal.level")  # and what follows from that


@pytest.mark.parametrize(
    "wrong",
    [
        {"planner": {**PLANNER, "sampels": 3}},
        {"replan": 0},
        {"horizon": {"stat": 3}},
        {"horizon": {}, "oracle": {}},
        {"environment": "rooms"},
    ],
)
def test_what_is_wrong_with_the_plan_is_not_said_of_each_way_again(wrong: dict[str, Any]) -> None:
    alone, many = (made(**wrong, beside=beside).problems for beside in ({}, {"more": BESIDE["more"], "same": {}}))
    assert alone == many != []


def test_what_is_wrong_with_a_way_is_said_beside_what_is_wrong_with_the_plan() -> None:
    found = made(planner={"name": "cem", "sampels": 3}, beside={"x": {"planner": {"name": "mppi", "sampels": 3}}}).problems
    assert [problem.path for problem in found] == ["plan.planner.sampels", "plan.beside.x.planner.sampels"]


def test_each_way_can_be_changed_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY | {"plan": STUDY["plan"] | {"beside": {"bare": BESIDE["bare"]}}}))
    study = read(str(file), ["plan.beside.bare.planner.samples=3", "plan.beside.new.replan=4"], registry.load())
    found = ways(study)
    assert found["bare"].planner.options["samples"] == 3
    assert found["planned"].planner.options["samples"] == 4
    assert found["new"].keys.replan == 4


def test_every_way_does_the_same_tasks_with_the_same_noise() -> None:
    beside = {name: BESIDE[name] for name in ("more", "upper", "truth", "same")} | {"again": {"oracle": {1: 4}}}
    found = setting(beside=beside)
    assert list(found.policies()) == ["random", "straight", "oracle", "planned", *beside]
    acted = {name: found.act(name) for name in found.policies()}
    for one, other in (("same", "planned"), ("again", "oracle")):
        assert torch.equal(acted[one].record.position, acted[other].record.position)
        assert acted[one].scores["evaluations"] == acted[other].scores["evaluations"]
    assert acted["more"].scores["evaluations"] > acted["planned"].scores["evaluations"]
    assert acted["truth"].policy.every == 1  # type: ignore[attr-defined]
    assert acted["upper"].policy.clock == 2  # type: ignore[attr-defined]
    assert (acted["truth"].scores["gigaflop"], acted["upper"].scores["gigaflop"] > 0) == (0, True)
    starts = {name: tuple(one.record.position[:, 0].flatten().tolist()) for name, one in acted.items()}
    assert len(set(starts.values())) == 1


def test_each_way_is_asked_as_often_as_it_says() -> None:
    replans = {"often": {"replan": 1}, "once": {"replan": 4, "horizon": {"state": 4}}, "world": {"oracle": {1: 4}, "replan": 1}}
    found = setting(beside=replans)
    asked = {name: found.act(name).policy.asked for name in ("planned", *replans)}  # type: ignore[attr-defined]
    assert asked == {"planned": 2, "often": 4, "once": 1, "world": 4}


def test_every_way_has_a_row_and_metrics_of_its_own() -> None:
    found = setting(beside={"more": BESIDE["more"], "truth": BESIDE["truth"]})
    acted = {name: found.act(name) for name in found.policies()}
    metrics = shown.told(found, acted)["metrics"]
    assert metrics["plan/success"] == acted["planned"].scores["success"]
    for name in ("random", "oracle", "more", "truth"):
        assert metrics[f"plan/{name}_success"] == acted[name].scores["success"]
        assert metrics[f"plan/{name}_against"] == pytest.approx(metrics[f"plan/{name}_success"] - metrics["plan/success"])
        assert metrics[f"plan/{name}_against_low"] <= metrics[f"plan/{name}_against"] <= metrics[f"plan/{name}_against_high"]
    assert "plan/against" not in metrics
    console = Console(file=(out := io.StringIO()), width=150)
    shown.table(acted, console)
    reached = out.getvalue()[: out.getvalue().index("what that took")]
    rows = {words[0]: line for line in reached.splitlines() if (words := line.split())}
    against = metrics["plan/more_against"], metrics["plan/more_against_low"], metrics["plan/more_against_high"]
    assert "{:+.0f} ({:+.0f} to {:+.0f})".format(*(100 * value for value in against)) in rows["more"]
    assert "(" not in rows["planned"]


def test_what_cannot_work_is_said_before_anybody_acts() -> None:
    with pytest.raises(Mistake, match=r"plan\.beside\.x\.replan: 3 is no multiple of 2"):
        setting(beside={"x": BESIDE["upper"] | {"replan": 3}})
    with pytest.raises(Mistake, match=r"plan\.beside\.x\.planner: elites is 2 of 1 samples"):
        setting(beside={"x": {"planner": {"samples": 1}}})


def test_a_world_that_is_no_model_of_itself_is_none_for_a_way_either() -> None:
    pytest.importorskip("gymnasium")
    world = {"name": "gymnasium", "id": "MountainCarContinuous-v0"}
    costs = {label: {"name": "distance", "level": label} for label in ("state", "world")}
    with pytest.raises(Mistake, match=r"plan\.beside\.x\.oracle: gymnasium cannot be its own model"):
        setting(environment=world, oracle={}, costs=costs, beside={"x": {"oracle": {1: 4}}})


def test_a_way_to_plan_in_what_was_never_learned_is_refused(tmp_path: Path) -> None:
    raw = deepcopy(STUDY)
    raw["plan"] |= {"horizon": {}, "costs": {"true": {"name": "distance", "level": "world"}}, "beside": {"x": BESIDE["upper"]}}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(Mistake, match="train it, and plan with the run"):
        planning.of_run(str(file), [], registry.load(), print)
