"""The mirror to MLflow: the life of a run, and of the process that mirrors it; the training never notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mirrors import (
    Server,
    expected,
    history,
    measure,
    noted,
    only_run,
    replica_of,
    run_folder,
)

from hjepa import tracking
from hjepa.journal import Journal
from hjepa.tracking import Mirror
from hjepa.tracking.replica import RECORDS

ROOT = Path(tracking.__file__).parents[2]

# --- the life of a run ------------------------------------------------------------------------------------------------


def follow(run: Path, server: Server, trainer: list[bool], superseded: bool = False, patience: float = 0.0) -> bool:
    lives = iter(trainer)
    replica = replica_of(run, server)
    return tracking.follow(replica, lambda _: next(lives, False), lambda: superseded, patience, lambda: None)


@pytest.mark.parametrize(("outcome", "status"), [("done", "FINISHED"), ("stopped", "KILLED"), ("failed", "FAILED")])
def test_the_outcome_is_the_status(outcome: str, status: str, tmp_path: Path) -> None:
    run, journal = run_folder(tmp_path)
    server = Server()
    journal.event("finished", 3, outcome=outcome)
    assert follow(run, server, [True, False])
    assert server.runs[0].status == status


def test_a_resumed_run_is_running_again_and_the_same(tmp_path: Path) -> None:
    run, journal = run_folder(tmp_path)
    server = Server()
    journal.event("finished", 3, outcome="stopped")
    assert follow(run, server, [False])
    seen: list[str] = []
    lives = iter([True, True])

    def wait(seconds: float) -> bool:
        seen.append(server.runs[0].status)
        return next(lives, False)

    assert tracking.follow(replica_of(run, server), wait, lambda: False, 0.0, lambda: None)
    assert seen == ["KILLED", "RUNNING", "RUNNING"]
    assert len(server.runs) == 1


def test_a_mirror_gives_way_to_the_next_one_and_leaves_the_status(tmp_path: Path) -> None:
    run, journal = run_folder(tmp_path)
    server = Server()
    measure(journal, range(2))
    assert not follow(run, server, [True, False], superseded=True)
    assert server.runs[0].status == "RUNNING"
    assert server.metrics() == expected(range(2))


def test_one_mirror_a_run_and_the_next_is_seen_waiting(tmp_path: Path) -> None:
    with tracking._only_mirror(tmp_path, wait=True) as superseded:
        assert superseded is not None
        assert not superseded()
        with tracking._only_mirror(tmp_path, wait=False) as second:
            assert second is None
        assert not superseded()
        entered = threading.Event()

        def third() -> None:
            with tracking._only_mirror(tmp_path, wait=True):
                entered.set()

        thread = threading.Thread(target=third)
        thread.start()
        while not superseded():
            time.sleep(0.01)
        assert not entered.is_set()
    thread.join()
    assert entered.is_set()


def test_an_outage_is_waited_for_and_then_all_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, journal = run_folder(tmp_path)
    measure(journal, range(4))
    assert not follow(run, Server(["lost"] * 99), [True, True, False], patience=0.0)
    assert noted(run)["pending"] is True
    server = Server(["lost"] * 5)
    waits: list[float] = []
    replica = replica_of(run, server)
    assert tracking.follow(replica, lambda seconds: waits.append(seconds) or False, lambda: False, 600.0, lambda: None)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert server.metrics() == expected(range(4))


def test_siblings_without_a_mirror_are_sent_too(tmp_path: Path) -> None:
    server = Server()
    runs = [run_folder(tmp_path, name) for name in ("own", "left", "mirrored", "sent", "trained")]
    for run, journal in runs:
        measure(journal, range(2))
        replica_of(run, Server())
    own, _, mirrored, sent, trained = (run for run, _ in runs)
    (sent / "mlflow.json").write_text(json.dumps({"pending": False}))
    siblings = tracking._pending_siblings(own)
    with tracking._only_mirror(mirrored, wait=True), tracking._locked(trained / ".trainer.lock"):
        for _ in range(9):
            tracking._catch_up_one(siblings, lambda uri: server)  # type: ignore[arg-type, return-value]
    pending = {run.name: noted(run)["pending"] for run, _ in runs}
    assert pending == {"own": True, "left": False, "mirrored": True, "sent": False, "trained": True}
    assert [run.status for run in server.runs] == ["KILLED", "RUNNING"]


# --- the process ------------------------------------------------------------------------------------------------------

TRAINER = """
import json, os, sys, time
from pathlib import Path
from hjepa.journal import Journal
from hjepa.tracking import Mirror
run = Path(sys.argv[1])
journal = Journal(run / "journal.jsonl")
journal.event("started", 0)
began = time.perf_counter()
mirror = Mirror.start(run)
seconds = time.perf_counter() - began
if not (worker := os.fork()):
    time.sleep(300)  # a worker that outlives its trainer, and holds whatever the trainer held
    os._exit(0)
imported = sorted({"mlflow", "torch", "sqlalchemy", "yaml"} & set(sys.modules))
print(json.dumps({"seconds": seconds, "imported": imported, "worker": worker}), flush=True)
journal.metrics(0, {"loss/frame/energy": 1.0})
time.sleep(600)
"""


def eventually(what: Any) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_killed_trainer_is_shown_as_killed(mlflow_run: tuple[Path, Journal, Any]) -> None:
    run, _, client = mlflow_run
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(run)], stdout=subprocess.PIPE, env=environment, cwd=run)
    assert trainer.stdout is not None
    with trainer.stdout as lines:
        said = json.loads(lines.readline())
    try:
        assert said["imported"] == []
        assert said["seconds"] < 1.0
        eventually(lambda: "mlflow_run_id" in noted(run))
        eventually(lambda: only_run(client).data.metrics.get(RECORDS) == 1.0)
        assert only_run(client).info.status == "RUNNING"
        trainer.kill()
        trainer.wait()
        eventually(lambda: only_run(client).info.status == "KILLED")
        eventually(lambda: not noted(run)["pending"])
    finally:
        trainer.kill()
        trainer.wait()
        os.kill(said["worker"], signal.SIGKILL)
    assert history(client, "loss/frame/energy") == [(0, 1.0)]
    assert (run / "mlflow.log").read_text() == ""


def test_a_server_that_nobody_reaches_costs_nothing_and_loses_nothing(
    mlflow_run: tuple[Path, Journal, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, journal, client = mlflow_run
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HJEPA_TRACKING_PATIENCE", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    mirror = Mirror.start(run)
    measure(journal, range(3))
    journal.event("finished", 3, outcome="done")
    assert not mirror.finish(60)
    note = noted(run)
    assert (note["pending"], note["uri"]) == (True, "http://127.0.0.1:9")
    assert "nothing is lost" in (run / "mlflow.log").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{run.parent / 'mlflow.db'}")
    assert tracking.main([str(run)]) == 0
    assert history(client, "loss/frame/energy") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


def test_a_mirror_that_cannot_start_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert not Mirror.start(tmp_path).finish(1)
    assert not Mirror.start(tmp_path / "nowhere").finish(1)


def test_a_second_trainer_of_a_run_leaves_the_mirror_of_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(Mirror, "_launch", lambda mirror: launched.append(mirror))
    first = Mirror.start(tmp_path)
    assert not Mirror.start(tmp_path).finish(1)
    assert launched == [first]


def test_a_mirror_that_died_is_started_again_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([1, 0])
    launched: list[Any] = []
    true = subprocess.Popen

    def launch(command: list[str], **options: Any) -> Any:
        launched.append(true([sys.executable, "-c", f"raise SystemExit({next(codes)})"], **options))
        return launched[-1]

    monkeypatch.setattr(subprocess, "Popen", launch)
    mirror = Mirror.start(tmp_path)
    launched[0].wait()
    assert mirror.finish(30)
    assert len(launched) == 2


def test_a_mistyped_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tracking.main([str(tmp_path)]) == 2
    assert "no journal.jsonl" in capsys.readouterr().err
