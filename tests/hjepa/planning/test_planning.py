"""The `plan` of a study: what is wrong with it is said; its policies act; what came of it is shown."""

from __future__ import annotations

import io
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from planned import LEVEL, PLANNER, STUDY, made, setting
from rich.console import Console

from hjepa import cli, planning, registry, runs
from hjepa.compose import make_sources, streams_of
from hjepa.errors import Mistake
from hjepa.planning import Setting, compute, paired, shown
from hjepa.stack import Stack
from hjepa.study import parse


def test_read_again_what_is_resolved_is_the_same() -> None:
    written = made().resolved()
    again = parse(written, registry.load())
    assert not again.problems
    assert again.resolved() == written
    assert written["plan"]["costs"]["goal"] | {"level": "state", "weight": 2.0} == written["plan"]["costs"]["goal"]
    assert written["plan"]["tasks"] == {"seed": 1, "count": 3, "nearest": 0.0, "furthest": None}


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"horizon": {"stat": 3}}, "plan.horizon.stat", "did you mean 'state'?"),
        ({"horizon": {}, "oracle": {}}, "plan", "nothing plans"),
        ({"costs": {"goal": {"name": "distance", "level": "rome"}}}, "plan.costs.goal.level", "(there are: state, world)"),
        ({"costs": {"goal": {"name": "distance", "level": "world"}}}, "plan.costs", "nothing counts at 'state'"),
        ({"costs": {"goal": {"name": "distanse", "level": "world"}}}, "plan.costs.goal.name", "did you mean 'distance'"),
        ({"costs": {"goal": {"name": "distance"}}}, "plan.costs.goal.level", "required"),
        ({"environment": "rooms"}, "plan.environment.name", "two_rooms"),
        ({"planner": {"name": "cem", "sample": 3}}, "plan.planner.sample", "did you mean 'samples'"),
        ({"planer": "cem"}, "plan.planer", "did you mean 'planner'"),
        ({"tasks": {"cuont": 3}}, "plan.tasks", ""),
        ({"replan": 0}, "plan.replan", "greater than or equal to 1"),
        ({"reach": 0}, "plan.reach", "greater than 0"),
        ({"oracle": {0: 3}}, "plan.oracle", "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(changes: dict[str, Any], path: str, said: str) -> None:
    assert any(problem.path.startswith(path) and said in problem.message for problem in made(**changes).problems)


def test_a_plan_is_a_mapping() -> None:
    study = parse(STUDY | {"plan": "cem"}, registry.load())
    assert [problem.path for problem in study.problems] == ["plan"]


def test_every_policy_does_all_tasks_and_the_same_ones_again() -> None:
    found = setting()
    assert list(found.policies()) == ["random", "straight", "oracle", "planned"]
    for name in found.policies():
        first, again = found.act(name), setting().act(name)
        assert first.record.reached.shape == (3, 4)
        assert torch.equal(first.record.position, again.record.position)
    assert first.scores["evaluations"] > 0
    assert first.scores["gigaflop"] > 0


def test_what_a_task_comes_to_does_not_depend_on_those_beside_it(tmp_path: Path) -> None:
    whole = setting()
    columns = ",".join(whole.world.columns)
    file = tmp_path / "tasks.csv"
    file.write_text(f"{columns}\n" + "\n".join(",".join(str(float(n)) for n in row) for row in whole.tasks[:1]) + "\n")
    alone = setting(tasks=str(file))
    assert torch.equal(alone.tasks, whole.tasks[:1])
    for name in ("straight", "oracle"):
        assert torch.equal(alone.act(name).record.position, whole.act(name).record.position[:1])


def test_more_steps_predicted_are_more_work() -> None:
    few, many = (setting(horizon={"state": horizon}).act("planned").scores for horizon in (2, 4))
    assert few["evaluations"] < many["evaluations"]
    assert few["gigaflop"] < many["gigaflop"]


def test_levels_plan_with_as_much_of_what_can_be_done_as_they_shall() -> None:
    whole, half = setting(), setting(reach=0.5)
    assert half._space(half.ways["planned"]).high.tolist() == (whole.world.actions.high / 2).tolist()
    policy = half.policies()["planned"]()
    actions = policy(planning.episodes.standing(half.world.reset(half.tasks), 1, 2), 4)
    assert (actions.abs() <= whole.world.actions.high / 2).all()
    assert actions.abs().max() > whole.world.actions.high[0] / 8


def test_what_can_be_done_lies_where_tasks_and_keys_do() -> None:
    """A GPU is not always there; the meta device is, and a world knows no device."""
    found = setting(device="meta")
    space = found._space(found.ways["planned"])
    anything = found.policies()["random"]()
    devices = {bound.device.type for one in (found.actions, space, anything.space) for bound in (one.low, one.high)}  # type: ignore
    assert devices == {found.tasks.device.type} == {found.key.word.device.type} == {"meta"}
    assert anything({}, 4).shape == (3, 4, 2)


def test_what_nobody_is_sure_of_can_cost_at_any_level_of_a_hierarchy() -> None:
    """States of an upper level that are read from those of the one below are not doubted there; those that it predicts are."""
    raw, members = deepcopy(STUDY), [STUDY["levels"]["state"]["predictor"]] * 2
    for level in raw["levels"].values():
        level["predictor"] = {"name": "ensemble", "members": members}
    doubts = {f"doubt_{label}": {"name": "disagreement", "level": label} for label in ("state", "room")}
    raw["plan"] |= {
        "horizon": {"state": 2, "room": 2},
        "oracle": {},
        "costs": {"goal": {"name": "distance", "level": "room"}, **doubts},
        "planner": {"name": "hierarchical", "inner": PLANNER},
    }
    study = parse(raw, registry.load())
    study.complain()
    found = Setting(study, Stack(study, streams_of(make_sources(study))).eval().requires_grad_(False), torch.device("cpu"))
    assert found.act("planned").scores["evaluations"] > 0


def test_a_level_that_depends_on_another_is_planned_with_what_both_need(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = deepcopy(STUDY)
    raw["levels"]["later"] = {**LEVEL, "reads": "state", "condition": "room", "encoder": "identity"}
    raw["plan"] |= {"horizon": {"later": 3}, "oracle": {}, "costs": {"goal": {"name": "distance", "level": "later"}}}
    study = parse(raw, registry.load())
    study.complain()
    found = Setting(study, Stack(study, streams_of(make_sources(study))).eval().requires_grad_(False), torch.device("cpu"))
    assert found.memory(found.ways["planned"]) == 2
    assert found.act("planned").scores["evaluations"] > 0
    monkeypatch.setattr(Setting, "memory", lambda *_: 1)
    with pytest.raises(Mistake, match="level 'later' is conditioned on 'room', of which too little is seen"):
        found.act("planned")


def test_a_level_where_nothing_counts_needs_one_above_where_something_does() -> None:
    cost = {"goal": {"name": "distance", "level": "room"}}
    assert not made(horizon={"state": 4, "room": 1}, oracle={}, costs=cost).problems
    (problem,) = made(horizon={"room": 1, "state": 4}, oracle={}, costs=cost).problems
    assert "nothing counts at 'state', nor above" in problem.message


def test_levels_plan_from_the_top_down_and_see_as_many_frames_as_one_step_of_the_highest_needs() -> None:
    costs = {label: {"name": "distance", "level": label} for label in ("state", "room")}
    found = setting(horizon={"state": 4, "room": 2}, oracle={}, costs=costs, planner={"name": "hierarchical", "inner": PLANNER})
    assert found.memory(found.ways["planned"]) == 2
    assert list(found.policies()) == ["random", "straight", "planned"]
    policy = found.policies()["planned"]()
    observed = planning.episodes.standing(found.world.reset(found.tasks), 2, 2)
    assert policy(observed, 4).shape == (3, 2, 2)
    assert set(policy.tally) == {0, 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "the file has a,b"),
        ("start_x,start_y,goal_x,goal_y,wall,door\n", "a task of this world is start_x"),
        ("start_x,start_y,goal_x,goal_y,wall,door\n1,2,3,4,5\n", "a task of this world"),
        ("start_x,start_y,goal_x,goal_y,wall,door\n1,2,3,4,5,six\n", "cannot be read"),
        (None, "no file of tasks"),
    ],
)
def test_a_file_of_tasks_that_is_none_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "tasks.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(Mistake, match=said):
        setting(tasks=str(file))


def test_a_misspelt_file_of_tasks_is_told_from_those_that_are_there() -> None:
    with pytest.raises(Mistake, match=r"no file of tasks 'two_room_tasks.csv', did you mean 'two_rooms_tasks.csv'"):
        setting(tasks="two_room_tasks.csv")


def test_a_study_without_a_plan_cannot_act() -> None:
    study = parse({key: value for key, value in STUDY.items() if key != "plan"}, registry.load())
    with pytest.raises(Mistake, match="has no `plan`"):
        Setting(study, None, torch.device("cpu"))


def test_a_world_that_is_no_model_of_itself_is_refused_as_one() -> None:
    pytest.importorskip("gymnasium")
    with pytest.raises(Mistake, match=r"plan\.oracle: gymnasium cannot be its own model"):
        setting(environment={"name": "gymnasium", "id": "MountainCarContinuous-v0"})


def test_what_cannot_be_done_step_by_step_is_refused() -> None:
    costs = {"goal": {"name": "distance", "level": "room"}}
    slower = {"horizon": {"room": 2}, "oracle": {}, "costs": costs}
    assert setting(**slower).act("planned").record.reached.shape == (3, 4)
    with pytest.raises(Mistake, match=r"plan\.replan: 3 is no multiple of 2"):
        setting(**slower, replan=3).act("planned")


def test_actions_that_nobody_can_do_are_refused() -> None:
    costs = {"goal": {"name": "distance", "level": "room"}}
    raw = deepcopy(STUDY)
    raw["levels"]["room"]["macro_action"] = "sum"
    raw["plan"] |= {"horizon": {"room": 2}, "oracle": {}, "costs": costs}
    study = parse(raw, registry.load())
    found = Setting(study, Stack(study, streams_of(make_sources(study))).eval(), torch.device("cpu"))
    with pytest.raises(Mistake, match="the actions of 'room' are macro-actions"):
        found.act("planned")


def test_the_table_names_every_policy_and_what_it_reached() -> None:
    found = setting(oracle={})
    acted = {name: found.act(name) for name in found.policies()}
    console = Console(file=(out := io.StringIO()), width=150)
    shown.table(acted, console)
    assert all(name in out.getvalue() for name in acted)
    whole = out.getvalue()
    second, third = whole.index("what that took"), whole.index("search or model?")
    reached, taken, failing = whole[:second], whole[second:third], whole[third:]
    assert "95 %   near   middle   far   more than planned   at the end" in reached
    assert all(row in taken for row in acted) and "predicted steps" in taken
    assert "planned" in failing and "random" not in failing and "promised" in failing
    assert max(map(len, whole.splitlines())) < 115
    assert shown.line("random", acted["random"]) == "random: 0 % of the goals"


def test_a_run_is_planned_with_and_pictures_and_all_tasks_are_kept(tmp_path: Path) -> None:
    study = made()
    (tmp_path / "study.yaml").write_text("")
    run = runs.create(study, tmp_path / "run", registry.load())
    found = setting()
    found.run = run
    acted = {name: found.act(name) for name in ("straight", "planned")}
    files = shown.write(found, acted)
    kept = json.loads((run.path / "plan.json").read_text())
    assert kept["metrics"]["plan/success"] == acted["planned"].scores["success"]
    steps = [step if step <= 4 else None for step in acted["straight"].record.first.tolist()]
    assert kept["steps_to_goal"]["straight"] == steps
    assert len(kept["tasks"]) == 3
    picture, film = (Image.open(file) for file in files)
    assert picture.size[0] > 300
    assert film.n_frames == 5


def test_what_is_seen_in_colours_is_shown_in_them_and_the_goal_where_nothing_else_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = setting()
    acted = {"planned": found.act("planned")}
    grey, _ = shown.write(found, acted, tmp_path)
    width, height = Image.open(grey).size
    red, green = torch.eye(3)[:2, None, :, None, None].expand(2, 6, 3, 20, 20)
    acted["planned"].record.frames[:] = [{"frames": red[:, None]}] * 5
    monkeypatch.setattr(found.world, "goal", lambda: {"frames": green[:, None]})
    monkeypatch.setattr(shown.maps, "of_task", lambda *_: None)
    picture, film = (Image.open(file) for file in shown.write(found, acted, tmp_path))
    pixels = np.asarray(picture.convert("RGB"))
    reds, greens = ((pixels == colour).all(-1).sum() for colour in ((255, 0, 0), (0, 255, 0)))
    assert 4.5 < reds / greens < 7.5 and picture.size == (width, height)  # no map, but a goal
    assert (np.asarray(film.convert("RGB")) == (255, 0, 0)).all()


def test_where_several_plan_there_is_a_picture_of_what_that_took(tmp_path: Path) -> None:
    run = runs.Run(tmp_path / "run")
    found = setting(beside={"more": {"planner": {"samples": 8}}})
    found.run = run
    acted = {name: found.act(name) for name in ("random", "planned", "more")}
    files = shown.write(found, acted)
    assert [file.relative_to(run.path).as_posix() for file in files] == [
        f"figures/{name}" for name in ("plan.png", "plan.gif", "compute.png")
    ]
    assert Image.open(files[-1]).size[0] > 1000
    elsewhere = tmp_path / "some" / "where"
    kept = (run.path / "plan.json").read_text()
    (run.path / "plan.json").unlink()
    assert [file.parent for file in shown.write(found, acted, elsewhere)] == [elsewhere] * 3
    assert (elsewhere / "plan.json").read_text() == kept
    assert not (run.path / "plan.json").exists()


def test_whom_the_world_shows_what_it_foresees_is_not_among_those_who_plan_in_what_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes to draw and perceive is no affair of what was learned."""
    asked = list[tuple[list[str], list[str]]]()
    monkeypatch.setattr(compute, "picture", lambda path, scores, planning, learned: asked.append((planning, learned)))
    found = setting(beside={"more": {"planner": {"samples": 8}}, "exact": {"exact": ["state"]}})
    shown.write(found, {name: found.act(name) for name in found.policies()}, tmp_path)
    assert asked == [(["oracle", "planned", "more", "exact"], ["planned", "more"])]


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    found = setting()
    assert shown.place(found, None) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match="pictures cannot be written there"):
        shown.place(found, tmp_path / "file" / "below")
    with pytest.raises(Mistake, match="/proc: pictures cannot be written there"):
        shown.place(found, Path("/proc"))  # which is there, and where not even root writes
    assert shown.place(found, tmp_path) == (tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_points_that_are_none_have_no_minus() -> None:
    assert paired.points({"against": -0.001, "against_low": -0.02, "against_high": 0.004}) == "+0 (-2 to +0)"


def test_a_study_whose_levels_have_learned_nothing_is_refused(tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "planned.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    with pytest.raises(Mistake, match="train it, and plan with the run"):
        planning.of_run(str(file), [], registry.load(), print)
    with pytest.raises(Mistake, match="no run at 'nowhere'"):
        planning.of_run("nowhere", [], registry.load(), print)


def test_where_the_world_is_the_model_nothing_has_to_be_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    file = tmp_path / "world.yaml"
    costs = {"true": {"name": "distance", "level": "world"}}
    file.write_text(yaml.safe_dump({"plan": STUDY["plan"] | {"horizon": {}, "costs": costs}}))
    with pytest.raises(SystemExit) as ended:
        cli.app(["plan", str(file), "plan.tasks.count=2", "plan.beside.long.oracle={1: 5}", "--out", str(tmp_path), "--json"])
    assert not ended.value.code
    said = capsys.readouterr()
    assert json.loads((tmp_path / "plan.json").read_text()) | json.loads(said.out.splitlines()[-1]) == json.loads(
        (tmp_path / "plan.json").read_text()
    )
    for name in ("plan.png", "plan.gif", "compute.png"):
        assert (tmp_path / name).is_file() and f"picture: {tmp_path / name}" in said.err
    with pytest.raises(SystemExit) as checked:
        cli.app(["check", str(file)])
    assert not checked.value.code and "learns nothing" in capsys.readouterr().err
    with pytest.raises(Mistake, match="there is nothing to train"):
        cli.app(["train", str(file)], standalone_mode=False)
    assert json.loads(said.out.splitlines()[-1])["metrics"].keys() >= {
        f"plan/{name}_success" for name in ("oracle", "straight", "long")
    }
    assert "oracle" in said.err
