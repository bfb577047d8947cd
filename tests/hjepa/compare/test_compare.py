"""Runs side by side: found, read whatever state they are in, and shown."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from recorded import DEAD, FLAT, OBJECTIVE, sweep_folder, trained, trial
from rich.console import Console

from hjepa import compare
from hjepa.compare import gather, overlay, terminal
from hjepa.errors import Mistake
from hjepa.verdicts import VERDICT_COLOURS


def printed(told: compare.Comparison, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width)
    terminal.table(told, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "runs" / "alive", weight=1.0)
    trained(tmp_path / "runs" / "dead", DEAD, weight=0.0)
    return tmp_path / "runs"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = sweep_folder(tmp_path / "runs" / "s-sweep")
    for number, (words, outcome) in enumerate([("healthy", "done"), (DEAD, "done"), (FLAT, "pruned"), ("healthy", None)]):
        trial(folder, number, words, outcome, weight=0.5 * number, kind="ab"[number % 2])
    return folder


# --- what is named ----------------------------------------------------------------------------------------------------


def test_runs_are_named_by_folder_by_name_or_all_of_a_folder(runs: Path) -> None:
    by_folder = gather([str(runs / "alive"), "dead"])
    assert [run.name for run in by_folder.runs] == ["alive", "dead"]
    assert [run.name for run in gather(["runs"]).runs] == ["alive", "dead"]
    assert [run.name for run in gather(["alive", "alive"]).runs] == ["alive"]


def test_what_is_not_there_is_one_clear_mistake(runs: Path) -> None:
    with pytest.raises(Mistake, match=r"no run or sweep at 'alife' \(in runs/ there are: alive, dead\)"):
        gather(["alife"])
    sweep_folder(runs / "s-sweep")
    with pytest.raises(Mistake, match="no trial has begun"):
        gather(["s-sweep"])
    with pytest.raises(Mistake, match="there is no MLflow here to ask"):
        gather(["params.seed = '0'"])


def test_a_sweep_is_its_trials_the_best_first(sweep: Path) -> None:
    told = gather(["s-sweep"])
    assert [run.name for run in told.runs] == ["0", "1", "2", "3"]
    assert told.objectives == {OBJECTIVE: "maximize"}
    assert told.varying == {"weight": ["0", "0.5", "1", "1.5"], "kind": ["a", "b", "a", "b"]}
    assert compare.ranked(told)[:2] == [1, 0]
    assert compare.place_of(told) == sweep / "compare"


def test_trials_of_two_sweeps_are_told_apart(sweep: Path) -> None:
    trial(sweep_folder(sweep.parent / "t-sweep"), 0)
    names = [run.name for run in gather(["s-sweep", "t-sweep"]).runs]
    assert names == ["s-sweep/0", "1", "2", "3", "t-sweep/0"]


def test_a_score_that_is_no_number_comes_last(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "s-sweep")
    for number, score in enumerate(["0.1", '{"$float":"nan"}', "0.3", '{"$float":"nan"}', "0.2", "0.4"]):
        with (trial(folder, number) / "journal.jsonl").open("a") as file:
            file.write(f'{{"n":9,"step":20,"time":0,"metrics":{{"{OBJECTIVE}":{score}}}}}\n')
    assert compare.ranked(gather([str(folder)])) == [5, 2, 4, 0, 1, 3]


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_first_sentence_says_how_many_collapsed(sweep: Path, runs: Path) -> None:
    assert gather(["alive"]).sentence == "1 of 1 runs healthy"
    assert gather(["alive", "dead"]).sentence == "1 of 2 runs is not healthy: 1 complete collapse"
    assert gather(["s-sweep"]).sentence == "2 of 4 runs are not healthy: 1 complete collapse, 1 dimensional collapse"
    (runs / "new").mkdir()
    (runs / "new" / "resolved.yaml").write_text("seed: 0\n")
    assert gather(["new"]).sentence == "of 1 nothing is known yet"


def test_the_terminal_says_what_differs_and_what_became_of_it(runs: Path) -> None:
    text = printed(gather(["alive", "dead"]))
    (dead,) = (line for line in text.splitlines() if line.startswith(" dead"))
    assert dead.split()[:5] == ["dead", "0", "complete", "collapse", "0.5"]
    assert "0.0045 %" in dead
    assert len(max(printed(gather(["runs"]), width=60).splitlines(), key=len)) <= 60


def test_what_varies_is_shown_beside_a_level_of_the_same_name(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "s-sweep")
    for number, choice in enumerate(["nothing", "vicreg"]):
        trial(folder, number, **{"levels.frame": choice})
    columns = gather([str(folder)]).columns()
    assert [cell.text for cell in columns["frame"]] == ["nothing", "vicreg"]
    assert [cell.text for cell in columns["frame: verdict"]] == ["healthy", "healthy"]


def test_a_place_that_cannot_be_written_is_one_clear_mistake(runs: Path) -> None:
    told = gather(["alive"])
    (runs / "file").write_text("")
    (runs / "taken" / "index.html").mkdir(parents=True)
    for place in (runs / "file", runs / "file" / "below", runs / "taken"):
        with pytest.raises(Mistake, match="page and pictures cannot be written"):
            compare.write(told, place)


def test_programs_get_all_of_it(sweep: Path) -> None:
    found = json.loads(json.dumps(compare.as_json(gather(["s-sweep"]), [])))
    assert [row["state"] for row in found["runs"]] == ["done", "done", "pruned", "unfinished"]
    assert found["runs"][1]["verdicts"] == {"frame": DEAD}
    assert found["runs"][1]["varying"] == {"weight": "0.5", "kind": "b"}
    assert found["runs"][1]["metrics"][OBJECTIVE] == 0.1
    assert found["kinds"] == {"complete collapse": 1, "dimensional collapse": 1, "healthy": 2}


def test_pictures_and_page_are_written(sweep: Path) -> None:
    told = gather(["s-sweep"])
    page, *pictures = compare.write(told, compare.place_of(told))
    assert page == sweep / "compare" / "index.html"
    assert {path.stem for path in pictures} >= {"curves", "history", "parallel_coordinates"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    text = page.read_text()
    assert text.count('<tr data-run="') == 4
    assert "http" not in text.replace("http://www.w3.org", "").replace("https://www.w3.org", "")
    for kind in ("complete collapse", "dimensional collapse", "healthy"):
        assert VERDICT_COLOURS[kind] in text


def test_a_damaged_run_is_shown_with_what_it_has(runs: Path) -> None:
    journal = runs / "alive" / "journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:3], "{broken", '{"n":9}', "17", *lines[4:], '{"torn']))
    (runs / "dead" / "journal.jsonl").unlink()
    (runs / "dead" / "resolved.yaml").write_text("a: [")
    told = gather(["alive", "dead"])
    assert told.runs[0].damaged == 3
    assert "3 lines damaged" in printed(told)
    compare.write(told, runs / "compare")


def test_ten_thousand_are_read_from_their_ends(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read of few runs is read of many: verdicts, states, last values; and the curves of those that are drawn."""
    few = gather(["s-sweep"])
    monkeypatch.setattr(compare, "READ", 2)
    monkeypatch.setattr(compare, "sampled", lambda runs: overlay.sampled(runs, 3))
    many = gather(["s-sweep"])
    for one, other in zip(few.runs, many.runs, strict=True):
        assert (one.verdicts, one.state, one.metrics, one.step) == (other.verdicts, other.state, other.metrics, other.step)
    assert len(many.drawn) == 3
    assert {many.runs[place].kind for place in many.drawn} == {"healthy", "complete collapse", "dimensional collapse"}
    assert all(many.runs[place].curve("collapse/frame/rank")[0] == [0, 10, 20] for place in many.drawn)
    assert many.remark.startswith("Curves of 3 of 4 runs")


def test_a_thousand_trials_take_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "READ", 100)
    folder = sweep_folder(tmp_path / "s-sweep")
    first = trial(folder, 0, kind="a")
    texts = {file.name: file.read_text() for file in first.iterdir()}
    for number in range(1, 1000):
        place = folder / "trials" / str(number)
        place.mkdir()
        for name, text in texts.items():
            (place / name).write_text(text)
    begun = time.process_time()
    assert len(gather([str(folder)]).runs) == 1000
    assert time.process_time() - begun < 3


def test_where_a_row_a_run_is_too_wide_there_is_a_column_a_run(runs: Path) -> None:
    told = gather(["alive", "dead"])
    wide, narrow = printed(told, 300), printed(told, 42)
    rows = [line.split() for line in narrow.splitlines() if line.strip()]
    assert ["run", "alive", "dead"] in rows
    assert any(line.split()[:1] == ["alive"] for line in wide.splitlines())
    assert "…" not in narrow
