"""A run's folder: made once, found again, gone on in only with the study that it was begun with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hjepa import runs
from hjepa.errors import Mistake
from hjepa.registry import Registry, load
from hjepa.study import Study, parse

RAW: dict[str, Any] = {
    "data": {"video": {"name": "moving_digits", "frames": 4}},
    "levels": {"frame": {"name": "forecast", "encoder": "conv", "predictor": "causal", "energy": "l2"}},
    "probes": {"where": {"name": "regression", "level": "frame", "target": "position"}},
}


@pytest.fixture(scope="module")
def installed() -> Registry:
    return load()


@pytest.fixture
def plan(installed: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study; what is relative lies in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return parse(RAW, installed, name="mine")


def changed(installed: Registry, **train: Any) -> Study:
    return parse(RAW | {"train": train}, installed, name="mine")


# --- making -----------------------------------------------------------------------------------------------------------


def test_a_new_run_holds_the_study_as_written_with_every_default_and_what_it_was_made_with(plan: Study, installed: Registry):
    run = runs.create(plan, Path("out/here"), installed)
    assert run.path == Path("out/here").resolve()
    assert (run.path / "study.yaml").read_text() == plan.text
    assert run.resolved() == plan.resolved()
    assert parse(run.resolved(), installed).resolved() == plan.resolved()
    told = json.loads((run.path / "versions.json").read_text())
    assert set(told) >= {"run_id", "hjepa", "python", "torch", "machine", "git", "plugins"}
    assert told["plugins"]["hjepa_energy"] == told["hjepa"]
    other = runs.create(plan, Path("out/other"), installed)
    assert json.loads((other.path / "versions.json").read_text())["run_id"] != told["run_id"]
    assert (run.checkpoints, run.journal, run.figures) == tuple(
        run.path / name for name in ("checkpoints", "journal.jsonl", "figures")
    )


def test_without_a_folder_the_next_free_one_is_taken(plan: Study, installed: Registry):
    made = [runs.create(plan, None, installed).path for _ in range(3)]
    assert [path.relative_to(Path.cwd()).as_posix() for path in made] == ["runs/mine", "runs/mine-2", "runs/mine-3"]


def test_nothing_is_written_over(plan: Study, installed: Registry):
    runs.create(plan, Path("out"), installed)
    with pytest.raises(Mistake, match="out is not empty: give --resume"):
        runs.create(plan, Path("out"), installed)
    Path("notes").mkdir()
    Path("notes/mine.txt").write_text("mine")
    Path("shut/study.yaml").mkdir(parents=True)
    with pytest.raises(Mistake, match="shut: nothing can be written there"):
        runs.create(plan, Path("shut"), installed)
    with pytest.raises(Mistake, match="notes is not empty"):
        runs.create(plan, Path("notes"), installed)
    assert os.listdir("notes") == ["mine.txt"]


def test_what_ended_before_it_was_a_run_is_no_hindrance(plan: Study, installed: Registry):
    Path("out").mkdir()
    for name in runs.UNFINISHED:
        Path("out", name).write_text("half")
    assert runs.create(plan, Path("out"), installed).resolved() == plan.resolved()


@pytest.mark.parametrize("out", ["a file", "a file/deeper", "x" * 5000, "/proc/nowhere", "a\0b"])
def test_a_folder_that_cannot_be_made_is_a_mistake(out: str, plan: Study, installed: Registry):
    Path("a file").write_text("")
    with pytest.raises(Mistake, match="cannot be made"):
        runs.create(plan, Path(out), installed)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_same_study(plan: Study, installed: Registry):
    run = runs.create(plan, Path("out"), installed)
    assert runs.reopen(plan, Path("out")) == run
    assert runs.reopen(parse(yaml.safe_load(yaml.safe_dump(plan.resolved())), installed, name="mine"), Path("out")) == run


def test_without_a_folder_the_newest_run_goes_on(plan: Study, installed: Registry):
    made = [runs.create(plan, None, installed).path for _ in range(3)]
    for age, path in enumerate(made):
        os.utime(path / "resolved.yaml", (1000 - age, 1000 - age))
    assert runs.reopen(plan, None).path == made[0]
    os.utime(made[1] / "resolved.yaml", (2000, 2000))
    assert runs.reopen(plan, None).path == made[1]
    Path("runs/mine-other").mkdir()
    Path("runs/mine-other/resolved.yaml").write_text("{}")
    for path in (made[0], made[1]):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert runs.reopen(plan, None).path == made[2]


@pytest.mark.parametrize("out", [None, Path("nowhere"), Path("empty"), Path("x" * 5000)])
def test_where_there_is_no_run_there_is_nothing_to_resume(out: Path | None, plan: Study):
    Path("empty").mkdir()
    with pytest.raises(Mistake, match="nothing to resume"):
        runs.reopen(plan, out)


def test_what_training_depends_on_may_not_change(plan: Study, installed: Registry):
    runs.create(plan, Path("out"), installed)
    other = parse(RAW | {"seed": 1, "train": {"steps": 7, "clip": 1.0}}, installed, name="mine")
    with pytest.raises(Mistake) as raised:
        runs.reopen(other, Path("out"))
    said = str(raised.value).splitlines()
    assert said[0] == "out was begun with another study; give the same one and the same overrides, or another --out:"
    assert said[1:] == ["  seed: was 0, now 1", "  train.steps: was 1000, now 7", "  train.clip: was None, now 1.0"]


def test_what_training_does_not_depend_on_may_change(plan: Study, installed: Registry):
    runs.create(plan, Path("out"), installed)
    free = {"workers": 2, "device": "cpu", "keep": 5, "checkpoint_every": 3, "track": False}
    other = parse(RAW | {"train": free, "evaluate": {"samples": 3}, "probes": {}}, installed, name="mine")
    runs.reopen(other, Path("out"))


def test_differences_are_told_by_their_dotted_keys():
    before = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": {}, "f": 1}
    after = {"a": {"b": 1, "c": [1, {"d": 3}, 4]}, "e": {"g": None}, "h": 2}
    assert runs.flattened(before) == {"a.b": 1, "a.c.0": 1, "a.c.1.d": 2, "e": {}, "f": 1}
    assert runs.differences(before, after) == {
        "a.c.1.d": "a.c.1.d: was 2, now 3",
        "e": "e: was {}, now 'nothing'",
        "f": "f: was 1, now 'nothing'",
        "a.c.2": "a.c.2: was 'nothing', now 4",
        "e.g": "e.g: was 'nothing', now None",
        "h": "h: was 'nothing', now 2",
    }
    assert runs.differences(before, before) == {}


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_path_or_its_name(plan: Study, installed: Registry):
    here, there = runs.create(plan, None, installed), runs.create(plan, Path("out"), installed)
    assert runs.find("mine") == runs.find("runs/mine") == runs.find(str(here.path)) == here
    assert runs.find("out") == there


@pytest.mark.parametrize("reference", ["mien", "x" * 5000, "a\0b", "", "."])
def test_a_run_that_is_not_there_is_a_mistake_that_says_what_is(reference: str, plan: Study, installed: Registry):
    runs.create(plan, None, installed)
    with pytest.raises(Mistake, match=r"no run at .* \(in runs/ there are: mine\)"):
        runs.find(reference)


@pytest.mark.parametrize("text", [b"[1", b"[1, 2]", b"", b"\xff\xfe\x00"])
def test_a_run_whose_study_was_spoilt_is_a_mistake(text: bytes, plan: Study, installed: Registry):
    run = runs.create(plan, Path("out"), installed)
    (run.path / "resolved.yaml").write_bytes(text)
    with pytest.raises(Mistake, match="is not a run"):
        runs.find("out").resolved()


# --- one at a time ----------------------------------------------------------------------------------------------------

HOLD = "import sys, pathlib; from hjepa.runs import Run\nwith Run(pathlib.Path(sys.argv[1])).locked(): print('in', flush=True); input()"


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "in\n"
    with pytest.raises(Mistake, match="another process is training in this folder"), runs.Run(tmp_path).locked():
        pytest.fail("two are in")
    other.kill()
    other.wait()
    with runs.Run(tmp_path).locked():
        pass
