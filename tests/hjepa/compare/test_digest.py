"""What is read of a run, and what differs between runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import DEAD, FLAT, trained

from hjepa.collapse import COLLAPSES
from hjepa.compare.digest import Digest, differences, digest, short_names
from hjepa.verdicts import VERDICT_COLOURS, kind_of, worst


def told(**study: object) -> Digest:
    run = Digest(Path("nowhere"), "run")
    run.__dict__["study"] = study
    run.__dict__["params"] = {}
    return run


def test_a_run_is_read_from_its_journal(tmp_path: Path) -> None:
    run = digest(trained(tmp_path / "dead", DEAD), "dead")
    assert (run.state, run.step, run.kind, run.verdicts) == ("done", 20, "complete collapse", {"frame": DEAD})
    assert run.curve("collapse/frame/rank") == ([0, 10, 20], [8.0, 9.0, 10.0])
    assert run.alarms == {"frame": "step 20: nothing keeps it apart"}
    assert run.spectra == {"frame": [1.0, 0.5, 0.0]}
    assert run.metrics["probe/where/r2"] == 0.5


def test_a_resumed_run_counts_as_it_last_stood(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", outcome="stopped")
    with (folder / "journal.jsonl").open("a") as file:
        file.write('{"event":"resumed","step":10,"time":0}\n')
        file.write('{"n":3,"step":10,"time":0,"metrics":{"collapse/frame/rank":{"$float":"nan"}}}\n')
    for whole in (True, False):
        run = digest(folder, "run", whole)
        assert run.state == "unfinished"
        assert run.metrics["collapse/frame/rank"] != run.metrics["collapse/frame/rank"]


@pytest.mark.parametrize(
    "content",
    [
        *(None, "", "\n\n", '{"half', "[]\n", '{"metrics": 3}\n', '{"event":"finished"}\n', "\x00\n"),
        *('{"event":"verdicts","verdicts":3}\n', '{"event":"verdicts","verdicts":{"frame":3}}\n'),
    ],
)
def test_whatever_is_in_a_folder_is_read_without_complaint(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "journal.jsonl").write_text(content)
        (tmp_path / "resolved.yaml").write_text(content)
        (tmp_path / "trial.json").write_text(content)
    for whole in (True, False):
        run = digest(tmp_path, "run", whole)
        assert (run.state, run.kind, run.params, run.mirrored) == ("unfinished", "undecided", {}, {})
        assert differences([run, run]) == {}


def test_the_worst_level_speaks_for_a_run() -> None:
    assert worst(["healthy", FLAT, DEAD]) == "complete collapse"
    assert worst(["healthy", "undecided (a single embedding shows no spread)"]) == "healthy"
    assert worst([]) == "undecided"
    assert kind_of("energy collapse (wrong targets cost as much)") == "energy collapse"
    assert all(kind_of(kind) == kind for kind in VERDICT_COLOURS)
    assert set(COLLAPSES) < set(VERDICT_COLOURS)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "trials", "1"]), min_size=1, max_size=4), min_size=1, max_size=8))
def test_names_are_unique_and_no_longer_than_they_need_to_be(parts: list[list[str]]) -> None:
    paths = [Path("/", *part, f"{number}") for number, part in enumerate(parts)]
    assert short_names(paths) == [str(number) for number in range(len(paths))]
    paths = list(dict.fromkeys(Path("/x", f"s{number % 3}", "trials", f"{number // 3}") for number in range(7)))
    names = short_names(paths)
    assert len(set(names)) == len(names)
    assert names[0] == "s0/0" and names[-1] == "2"


def test_only_what_differs_is_shown_where_it_parts() -> None:
    vicreg = {"name": "vicreg", "std": 10.0, "cov": 100.0}
    first = told(seed=0, levels={"frame": {"prevention": [vicreg], "energy": {"name": "l2"}}}, train={"steps": 9, "keep": 2})
    other = told(seed=1, levels={"frame": {"prevention": [], "energy": {"name": "l1"}}}, train={"steps": 9, "keep": 5})
    third = told(
        seed=1, levels={"frame": {"prevention": [{**vicreg, "std": 1.0}], "energy": {"name": "l2"}}}, train={"steps": 9}
    )
    found = differences([first, other, third])
    assert found == {
        "seed": ["0", "1", "1"],
        "prevention": ["vicreg(std=10)", "none", "vicreg(std=1)"],
        "energy": ["l2", "l1", "l2"],
    }
    assert differences([first]) == {} == differences([])
    assert list(differences([first, third])) == ["seed", "std"]


def test_a_run_without_a_study_keeps_its_place() -> None:
    assert differences([told(seed=0), told(), told(seed=1)]) == {"seed": ["0", "", "1"]}


def test_trials_say_what_was_chosen(tmp_path: Path) -> None:
    runs = []
    for number, params in enumerate([{"a.lr": 0.00123456, "b.lr": 1}, {"a.lr": 0.5, "c": "x"}]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "trial.json").write_text(json.dumps({"params": params}))
        runs.append(digest(tmp_path / str(number), str(number)))
    assert differences(runs) == {"a.lr": ["0.001235", "0.5"], "b.lr": ["1", ""], "c": ["", "x"]}
