"""Runs of one recipe that acted, with several seeds, told together."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from recorded import trained
from rich.console import Console

from hjepa import compare
from hjepa.compare import gather, terminal
from hjepa.compare.page import page
from hjepa.errors import Mistake

TASKS = [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]


def acted(run: Path, seed: int, weight: float = 1.0, tasks: list[list[float]] = TASKS, **steps: list[int | None]) -> Path:
    """A run of a seed that has done these tasks in so many steps, by policy."""
    trained(run, weight=weight)
    study = yaml.safe_load((run / "resolved.yaml").read_text()) | {"seed": seed}
    (run / "resolved.yaml").write_text(yaml.safe_dump(study))
    kept: dict[str, Any] = {
        "metrics": {"plan/gigaflop": 24.0, "plan/at_the_end": 0.5},
        "ways": {},
        "world": {"steps": 100},
        "tasks": tasks,
        "away": [1.0, 2.0, 3.0],
    }
    (run / "plan.json").write_text(json.dumps(kept | {"steps_to_goal": steps}))
    return run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_policies_are_told_in_the_tasks_of_all_seeds(runs: Path) -> None:
    for seed in range(3):
        acted(runs / f"a{seed}", seed, planned=[9, 30, 31], flat=[9, None, None if seed else 12])
    told = gather([str(runs)])
    columns = {title: [cell.text for cell in cells] for title, cells in told.plans().items()}
    assert columns["by"] == ["planned", "flat"] and columns["tasks"] == ["3 x 3"] * 2
    assert columns["reached"] == ["100", "44"] and columns["each seed"] == ["100, 100, 100", "67, 33, 33"]
    assert (columns["near"], columns["middle"], columns["far"]) == (["100"] * 2, ["100", "0"], ["100", "33"])
    assert columns["more"][0] == "" and columns["more"][1].startswith("-56 (")
    assert columns["more of the far"][1].startswith("-67 (")
    assert columns["GFLOP"] == ["24", ""] and columns["at the end"] == ["50", ""]
    out = io.StringIO()
    terminal.table(told, Console(file=out, width=200))
    assert compare.ACTED.split(",")[0] in out.getvalue() and "67, 33, 33" in out.getvalue()
    assert "<h2>Acting</h2>" in page(told, compare.pictures(told))
    (said,) = compare.as_json(told, [])["plans"]
    assert said["runs"] == ["a0", "a1", "a2"]
    assert said["policies"]["flat"]["each"] == pytest.approx([2 / 3, 1 / 3, 1 / 3])


def test_recipes_are_told_apart(runs: Path) -> None:
    for seed in range(2):
        acted(runs / f"a{seed}", seed, planned=[1, 1, 1])
        acted(runs / f"b{seed}", seed, weight=2.0, planned=[None, 1, 1])
    columns = gather([str(runs)]).plans()
    assert [cell.text for cell in columns["std"]] == ["1", "2"]
    assert [cell.text for cell in columns["reached"]] == ["100", "67"]


def test_what_did_other_tasks_is_left_out_and_one_run_alone_is_not_several(runs: Path) -> None:
    acted(runs / "a0", 0, planned=[1, 1, 1])
    acted(runs / "a1", 1, tasks=TASKS[:1], planned=[1])
    assert gather([str(runs)]).plans() == {}
    acted(runs / "a2", 2, planned=[1, 1, None])
    for name, world in (("a3", {"steps": 60}), ("a4", {})):
        other = acted(runs / name, 3, planned=[1, 1, None])
        kept = json.loads((other / "plan.json").read_text()) | {"world": world}
        (other / "plan.json").write_text(json.dumps(kept))
    (told,) = gather([str(runs)]).acted
    assert [gather([str(runs)]).runs[place].name for place in told.places] == ["a0", "a2"]


def test_what_went_into_a_folder_of_its_own_is_read_there(runs: Path, tmp_path: Path) -> None:
    for seed in range(2):
        run, away = acted(runs / f"a{seed}", seed, planned=[1, 1, None]), tmp_path / "long" / f"b{seed}"
        away.mkdir(parents=True)
        told = json.loads((run / "plan.json").read_text()) | {"run": str(run), "steps_to_goal": {"planned": [1, None, None]}}
        (away / "plan.json").write_text(json.dumps(told))
    found = gather([str(tmp_path / "long")])
    assert [run.name for run in found.runs] == ["b0", "b1"] and found.kinds == {"healthy": 2}
    assert [cell.text for cell in found.plans()["reached"]] == ["33"]
    assert [cell.text for cell in gather([str(runs)]).plans()["reached"]] == ["67"]
    (tmp_path / "long" / "b0").rename(runs / "b0")
    assert [run.name for run in gather([str(runs)]).runs] == ["a0", "a1"], "the same run is not there twice"
    (runs / "b0").rename(tmp_path / "long" / "b0")
    (runs / "a1" / "resolved.yaml").unlink()
    (runs / "a1" / "journal.jsonl").unlink()
    with pytest.raises(Mistake, match=r"b1: what acted there, .*a1', is no run, or is no longer there"):
        gather([str(tmp_path / "long")])


def test_where_nobody_acted_nothing_is_told_of_it(runs: Path) -> None:
    for seed in range(2):
        acted(runs / f"a{seed}", seed)
        (runs / f"a{seed}" / "plan.json").unlink()
    told = gather([str(runs)])
    out = io.StringIO()
    terminal.table(told, Console(file=out, width=200))
    assert told.plans() == {} and compare.ACTED.split(",")[0] not in out.getvalue()
    assert "<h2>Acting</h2>" not in page(told, compare.pictures(told))
