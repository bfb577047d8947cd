"""One run on the server: each record once, whatever fails; what is sent, and where to."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mirrors import (
    Server,
    expected,
    history,
    measure,
    noted,
    only_run,
    replica_of,
    run_folder,
    send_until_it_works,
)

from hjepa import tracking
from hjepa.journal import Journal
from hjepa.tracking import replica
from hjepa.tracking.replica import RECORDS, Replica, Target

# --- exactly once -----------------------------------------------------------------------------------------------------

ACTS = st.lists(st.sampled_from(["measure", "send", "new mirror", "crash and resume", "checkpoint"]), max_size=25)
FATES = st.lists(st.sampled_from(["ok", "ok", "lost", "answer lost"]), max_size=40)


@settings(max_examples=50, deadline=None)
@given(acts=ACTS, fates=FATES)
def test_each_record_arrives_once_whatever_fails(acts: list[str], fates: list[str], tmp_path_factory: Any) -> None:
    run, journal = run_folder(tmp_path_factory.mktemp("once"))
    server = Server(fates)
    replica, mark, step, saved = replica_of(run, server), journal.mark(), 0, 0
    for act in acts:
        if act == "measure":
            measure(journal, range(step, step + 3))
            step += 3
        elif act == "send":
            with contextlib.suppress(ConnectionError):
                replica.send(over=False)
        elif act == "new mirror":
            replica = replica_of(run, server)
        elif act == "checkpoint":
            mark, saved = journal.mark(), step
        else:
            journal.rewind(mark)
            journal.event("resumed", saved)
            measure(journal, range(saved, step))
    journal.event("finished", step, outcome="done")
    send_until_it_works(replica, over=True)
    assert server.metrics() == expected(range(step))
    assert [run.status for run in server.runs] == ["FINISHED"]
    assert {"journal.jsonl", "study.yaml", "resolved.yaml", "spectrum.png"} <= set(server.files)
    assert noted(run)["pending"] is False


@pytest.mark.parametrize("fate", ["lost", "answer lost"])
def test_no_call_is_too_large_whichever_of_them_fails(fate: str, tmp_path: Path) -> None:
    sizes = [1, 899, 900, 901, 2500, 3]
    run, journal = run_folder(tmp_path)
    for step, size in enumerate(sizes):
        journal.metrics(step, {f"m{i}": float(i) for i in range(size)})
    smooth = Server(["ok"] * 99)
    replica_of(run, smooth).send(over=True)
    for call in range(99 - len(smooth.plan)):
        server = Server(["ok"] * call + [fate])
        send_until_it_works(replica_of(run, server), over=True)
        assert server.metrics() == Counter((f"m{i}", step, float(i)) for step, size in enumerate(sizes) for i in range(size))


def test_a_clock_that_goes_back_sends_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, journal = run_folder(tmp_path)
    server = Server()
    for clock in (5000.0, 4000.0, 3000.0):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        journal.metrics(7, {"probe/where/r2": clock})
        replica_of(run, server).send(over=False)
    assert server.metrics() == Counter(("probe/where/r2", 7, clock) for clock in (5000.0, 4000.0, 3000.0))


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_what_is_not_finite_becomes_a_tag(tmp_path: Path) -> None:
    run, journal = run_folder(tmp_path)
    server = Server()
    journal.metrics(1, {"loss/frame/std": 0.5})
    journal.metrics(2, {"loss/frame/std": math.inf, "loss/frame/cov": math.nan})
    journal.metrics(3, {"loss/frame/std": -math.inf})
    replica_of(run, server).send(over=True)
    assert server.metrics() == Counter([("loss/frame/std", 1, 0.5)])
    assert server.runs[0].tags["hjepa.nonfinite"] == "loss/frame/std at step 2, loss/frame/cov at step 2"


@pytest.mark.parametrize(
    ("written", "name"),
    [("loss/a/b.c", "loss/a/b.c"), ("level[0]", "level_0_"), ("a//b/../c", "a/c"), ("/x", "x"), ("..", "_")],
)
def test_names_become_such_as_mlflow_takes(written: str, name: str) -> None:
    assert replica.allowed(written) == name


def test_where_a_run_goes(tmp_path: Path) -> None:
    run, _ = run_folder(tmp_path / "runs")
    beside = Target.of(run, {})
    assert (beside.uri, beside.experiment) == (f"sqlite:///{tmp_path}/runs/mlflow.db", "hjepa")
    assert beside.artifacts == (tmp_path / "runs" / "mlartifacts").as_uri()
    chosen = Target.of(run, {"MLFLOW_TRACKING_URI": "http://here:5000", "MLFLOW_EXPERIMENT_NAME": "mine"})
    assert chosen == Target("http://here:5000", "mine", None, True)
    Replica(run, replica.Server(chosen, lambda uri: Server()))  # type: ignore[arg-type, return-value]
    assert Target.of(run, {}) == chosen
    run.rename(tmp_path / "moved")
    assert Target.of(tmp_path / "moved", {}) == chosen
    Replica(tmp_path / "moved", replica.Server(beside, lambda uri: Server()))  # type: ignore[arg-type, return-value]
    assert Target.of(tmp_path / "moved", {}).uri == f"sqlite:///{tmp_path}/mlflow.db"


# --- MLflow itself ----------------------------------------------------------------------------------------------------


def test_mlflow_shows_the_run(mlflow_run: tuple[Path, Journal, Any]) -> None:
    run, journal, client = mlflow_run
    journal.event("started", 0)
    measure(journal, range(3))
    journal.event("verdicts", 3, verdicts={"frame": "healthy"})
    journal.event("finished", 3, outcome="done")
    assert tracking.main([str(run)]) == 0
    shown = only_run(client)
    assert (shown.info.run_name, shown.info.status) == ("first", "FINISHED")
    parameters = {
        "seed": "0",
        "levels.frame.prevention.0.name": "vicreg",
        "levels.frame.prevention.0.std": "10.0",
        "probes": "{}",
    }
    assert shown.data.params == {**parameters, "levels.frame.energy": "l2", "levels.frame.note": "x" * 500}
    tags = {"hjepa.verdict.frame": "healthy", "hjepa.git": "abc123", "hjepa.plugins.hjepa_energy": "0.1", "hjepa.torch": "2"}
    assert tags.items() <= shown.data.tags.items()
    files = {file.path for file in client.list_artifacts(shown.info.run_id)}
    assert files == {"study.yaml", "resolved.yaml", "journal.jsonl", "figures"}
    assert (run.parent / "mlartifacts" / shown.info.run_id / "artifacts" / "figures" / "spectrum.png").exists()
    note = noted(run)
    assert (note["mlflow_run_id"], note["pending"]) == (shown.info.run_id, False)
    first = json.loads((run / "journal.jsonl").read_text().splitlines()[0])
    assert shown.info.start_time == int(first["time"] * 1000) <= shown.info.end_time


def test_mlflow_has_each_record_of_a_resumed_run_once(mlflow_run: tuple[Path, Journal, Any]) -> None:
    run, journal, client = mlflow_run
    measure(journal, range(4))
    mark = journal.mark()
    measure(journal, range(4, 7))
    assert tracking.main([str(run)]) == 0
    assert only_run(client).info.status == "KILLED"
    journal.rewind(mark)
    journal.event("resumed", 4)
    (run / "resolved.yaml").write_text("seed: 1\nmore: 2\n")  # MLflow refuses another value of what it has
    measure(journal, range(4, 9))
    Replica(run, replica.Server(Target.of(run), replica.connect)).send(over=False)
    assert only_run(client).info.status == "RUNNING"
    journal.event("finished", 9, outcome="done")
    assert tracking.main([str(run)]) == 0
    assert only_run(client).info.status == "FINISHED"
    assert history(client, "loss/frame/energy") == [(step, 1 / (step + 1)) for step in range(9)]
    assert history(client, RECORDS)[-1] == (9, 9.0)
    shown = only_run(client).data.params
    assert (shown["seed"], shown["more"]) == ("0", "2")


def test_mlflow_stores_all_the_metrics_of_a_call_or_none(mlflow_run: tuple[Path, Journal, Any]) -> None:
    """What exactly-once rests on: a count is there if, and only if, what it counts is there."""
    run, journal, client = mlflow_run
    with sqlite3.connect(run.parent / "mlflow.db") as database:
        refuse = "BEFORE INSERT ON metrics WHEN NEW.key = 'poison' BEGIN SELECT RAISE(ABORT, 'refused'); END"
        database.execute(f"CREATE TRIGGER refusal {refuse}")
    measure(journal, range(2))
    journal.metrics(2, {"a": 1.0, "poison": 1.0, "z": 1.0})
    assert tracking.main([str(run)]) == 1
    assert only_run(client).data.metrics == {}
    with sqlite3.connect(run.parent / "mlflow.db") as database:
        database.execute("DROP TRIGGER refusal")
    assert tracking.main([str(run)]) == 0
    assert history(client, "loss/frame/energy") == [(0, 1.0), (1, 0.5)]
    assert history(client, "z") == [(2, 1.0)]
