"""A sweep on the server: one parent, a child a trial, each record once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mirrors import Server, noted, place_of, send_until_it_works
from recorded import DEAD, HEALTHY, OBJECTIVE, sweep_folder, trial

from hjepa import tracking
from hjepa.journal import Journal
from hjepa.tracking.replicas import Replicas, is_sweep

FATES = st.lists(st.sampled_from(["ok", "ok", "ok", "lost", "answer lost"]), max_size=60)


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "mlflow_run" not in request.fixturenames:
        monkeypatch.setattr(Replicas, "_draw", lambda self: "drawn")


def replicas_of(sweep: Path, server: Server) -> Replicas:
    return Replicas(sweep, place_of(sweep, server))


def by_name(server: Server) -> dict[str, SimpleNamespace]:
    return {run.tags.get("hjepa.trial", "parent"): run for run in server.runs}


def rows(server: Server, number: str, key: str) -> list[tuple[int, float]]:
    run = by_name(server)[number]
    return [(step, value) for owner, name, step, _, value in server.rows if owner == run.id and name == key]


@settings(max_examples=25, deadline=None)
@given(fates=FATES, restarts=st.lists(st.booleans(), min_size=3, max_size=3))
def test_each_record_of_each_trial_arrives_once(fates: list[str], restarts: list[bool], tmp_path_factory: Any) -> None:
    sweep = sweep_folder(tmp_path_factory.mktemp("sweep") / "s-sweep")
    server = Server(fates)
    mirror = replicas_of(sweep, server)
    for number, restart in enumerate(restarts):
        trial(sweep, number)
        mirror = replicas_of(sweep, server) if restart else mirror
        try:
            mirror.send(over=False)
        except ConnectionError:
            continue
    send_until_it_works(mirror, over=True)
    assert sorted(by_name(server)) == ["0", "1", "2", "parent"]
    for number in "012":
        assert [step for step, _ in rows(server, number, "collapse/frame/rank")] == [0, 10, 20]
        assert rows(server, number, OBJECTIVE) == [(20, int(number) / 10)]
    assert {run.status for run in server.runs} == {"FINISHED"}


def test_a_trial_is_shown_as_it_happens_and_closed_when_it_ends(tmp_path: Path) -> None:
    sweep, server = sweep_folder(tmp_path / "s-sweep"), Server()
    mirror = replicas_of(sweep, server)
    mirror.send(over=False)
    parent = by_name(server)["parent"]
    assert (parent.status, "mlflow.parentRunId" in parent.tags) == ("RUNNING", False)
    for number, (words, outcome) in enumerate([(HEALTHY, "done"), (DEAD, "collapsed"), (HEALTHY, "failed"), (HEALTHY, None)]):
        trial(sweep, number, words, outcome, weight=0.5, kind="none")
    mirror.send(over=False)
    runs = by_name(server)
    assert [runs[number].status for number in "0123"] == ["FINISHED", "KILLED", "FAILED", "RUNNING"]
    assert {runs[number].tags["mlflow.parentRunId"] for number in "0123"} == {parent.id}
    assert [runs[number].name for number in "01"] == ["s-sweep/0", "s-sweep/1: complete collapse"]
    assert runs["1"].params == {"seed": "0", "weight": "0.5", "kind": "none"}
    tags = {"hjepa.outcome": "collapsed", "hjepa.verdict.frame": DEAD, "hjepa.alarm.frame": "step 20: nothing keeps it apart"}
    assert tags.items() <= runs["1"].tags.items()
    mirror.send(over=True)
    assert (runs["3"].status, parent.status) == ("KILLED", "FINISHED")


def test_what_was_sent_to_its_end_is_not_asked_for_again(tmp_path: Path) -> None:
    sweep, server = sweep_folder(tmp_path / "s-sweep"), Server()
    folder = trial(sweep, 0)
    trial(sweep, 1, outcome=None)
    replicas_of(sweep, server).send(over=True)
    calls = len(server.plan) or 999
    server.plan = ["ok"] * calls
    replicas_of(sweep, server).send(over=True)
    idle = calls - len(server.plan)
    journal = Journal(folder / "journal.jsonl")
    journal.event("resumed", 20)
    server.plan = ["ok"] * calls
    replicas_of(sweep, server).send(over=False)
    assert by_name(server)["0"].status == "RUNNING"
    assert idle < calls - len(server.plan)


def test_a_damaged_trial_does_not_hold_up_the_others(tmp_path: Path) -> None:
    sweep, server = sweep_folder(tmp_path / "s-sweep"), Server()
    (trial(sweep, 0) / "journal.jsonl").write_text("no record\n")
    trial(sweep, 1)
    (sweep / "trials" / "2").mkdir()
    replicas_of(sweep, server).send(over=True)
    assert by_name(server)["1"].status == "FINISHED"
    assert "2" not in by_name(server)


def test_only_a_folder_with_trials_is_a_sweep(tmp_path: Path) -> None:
    assert is_sweep(sweep_folder(tmp_path / "s-sweep"))
    assert not is_sweep(trial(tmp_path, 0))


def test_mlflow_has_the_sweep_with_its_page(mlflow_run: tuple[Path, Journal, Any]) -> None:
    run, _, client = mlflow_run
    sweep = sweep_folder(run.parent / "s-sweep")
    trial(sweep, 0, weight=0.1)
    trial(sweep, 1, DEAD, weight=0.7)
    assert tracking.main([str(sweep)]) == 0
    parent = client.get_run(noted(sweep)["mlflow_run_id"])
    assert (parent.info.run_name, parent.info.status) == ("s-sweep", "FINISHED")
    assert parent.data.tags["mlflow.note.content"].startswith("1 of 2 runs is not healthy: 1 complete collapse.")
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(child.info.run_name for child in children) == ["s-sweep/0", "s-sweep/1: complete collapse"]
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {"compare", "resolved.yaml", "study.yaml"}
    files = {file.path for file in client.list_artifacts(parent.info.run_id, "compare")}
    assert {"compare/index.html", "compare/curves.png", "compare/history.png"} <= files
    assert "compare-runs" in (sweep / "compare" / "index.html").read_text()
