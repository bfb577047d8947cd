"""The mirror to MLflow: each record once, whatever fails; the training never notices."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa import tracking
from hjepa.journal import Journal
from hjepa.tracking import RECORDS, Mirror, Replica, Target

ROOT = Path(tracking.__file__).parents[1]


# --- a server that fails ----------------------------------------------------------------------------------------------


class Server:
    """MLflow's client and server in one: each call fails before or after it is stored, as `plan` says, then all succeed."""

    def __init__(self, plan: Sequence[str] = ()) -> None:
        self.plan = list(plan)
        self.experiments: dict[str, str] = {}
        self.runs: list[SimpleNamespace] = []
        self.rows: list[Any] = []
        self.files: list[str] = []

    def _call(self, store: Any) -> Any:
        fate = self.plan.pop(0) if self.plan else "ok"
        if fate == "lost":
            raise ConnectionError("never arrived")
        result = store()
        if fate == "answer lost":
            raise ConnectionError("arrived, but the answer did not")
        return result

    def get_experiment_by_name(self, name: str) -> Any:
        return self._call(lambda: SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None)

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        assert name not in self.experiments
        return self._call(lambda: self.experiments.setdefault(name, str(len(self.experiments) + 1)))

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> list[Any]:
        return self._call(lambda: [self._seen(run) for run in self.runs if run.tags["hjepa.run_id"] in filter_string])

    def _seen(self, run: SimpleNamespace) -> Any:
        latest: dict[str, float] = {}
        for row in sorted((r for r in self.rows if r[0] == run.id), key=lambda r: (r[2], r[3], r[4])):
            latest[row[1]] = row[4]
        info = SimpleNamespace(run_id=run.id, status=run.status)
        return SimpleNamespace(info=info, data=SimpleNamespace(metrics=latest, params=dict(run.params), tags=dict(run.tags)))

    def create_run(self, experiment: str, start_time: int, tags: dict[str, str], run_name: str) -> Any:
        def store() -> Any:
            run = SimpleNamespace(id=f"run{len(self.runs)}", status="RUNNING", params={}, tags=dict(tags), ends=[])
            self.runs.append(run)
            return self._seen(run)

        return self._call(store)

    def log_batch(self, id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        run = next(r for r in self.runs if r.id == id)
        assert len(metrics) <= 1000

        def store() -> None:
            self.rows += [(id, m.key, m.step, m.timestamp, m.value) for m in metrics]
            for param in params:
                assert run.params.setdefault(param.key, param.value) == param.value
            run.tags.update({tag.key: tag.value for tag in tags})

        self._call(store)

    def update_run(self, id: str, status: str) -> None:
        self._call(lambda: setattr(next(r for r in self.runs if r.id == id), "status", status))

    def set_terminated(self, id: str, status: str, end_time: int) -> None:
        self.update_run(id, status)

    def log_artifact(self, id: str, path: str, folder: str | None) -> None:
        self._call(lambda: self.files.append(Path(path).name))

    def metrics(self) -> Counter[tuple[str, int, float]]:
        return Counter((key, step, value) for _, key, step, _, value in self.rows if key != RECORDS)


def replica_of(run: Path, server: Server) -> Replica:
    return Replica(run, Target.of(run, {}), lambda uri: server)  # type: ignore[arg-type, return-value]


def send_until_it_works(replica: Replica, over: bool) -> None:
    for _ in range(100):
        try:
            return replica.send(over)
        except ConnectionError:
            pass
    raise AssertionError("never got through")


def run_folder(parent: Path, name: str = "first") -> tuple[Path, Journal]:
    run = parent / name
    (run / "figures").mkdir(parents=True)
    (run / "figures" / "spectrum.png").write_bytes(b"a picture")
    (run / "study.yaml").write_text("seed: 0\n")
    levels = {"frame": {"energy": "l2", "prevention": [{"name": "vicreg", "std": 10.0}], "note": "x" * 600}}
    (run / "resolved.yaml").write_text(yaml.safe_dump({"seed": 0, "levels": levels, "probes": {}}))
    versions = {"run_id": "cafe" + name.encode().hex(), "git": "abc123", "plugins": {"hjepa_energy": "0.1"}, "torch": "2"}
    (run / "versions.json").write_text(json.dumps(versions))
    return run, Journal(run / "journal.jsonl")


def measure(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.metrics(step, {"loss/frame/energy": 1 / (step + 1), "collapse/frame/rank": step / 7})


def expected(steps: range) -> Counter[tuple[str, int, float]]:
    rows = [("loss/frame/energy", step, 1 / (step + 1)) for step in steps]
    return Counter(rows + [("collapse/frame/rank", step, step / 7) for step in steps])


def noted(run: Path) -> dict[str, Any]:
    note = run / "mlflow.json"
    return json.loads(note.read_text()) if note.exists() else {}


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
    assert tracking._name(written) == name


def test_where_a_run_goes(tmp_path: Path) -> None:
    run, _ = run_folder(tmp_path / "runs")
    beside = Target.of(run, {})
    assert (beside.uri, beside.experiment) == (f"sqlite:///{tmp_path}/runs/mlflow.db", "hjepa")
    assert beside.artifacts == (tmp_path / "runs" / "mlartifacts").as_uri()
    chosen = Target.of(run, {"MLFLOW_TRACKING_URI": "http://here:5000", "MLFLOW_EXPERIMENT_NAME": "mine"})
    assert chosen == Target("http://here:5000", "mine", None, True)
    Replica(run, chosen, lambda uri: Server())  # type: ignore[arg-type, return-value]
    assert Target.of(run, {}) == chosen
    run.rename(tmp_path / "moved")
    assert Target.of(tmp_path / "moved", {}) == chosen
    Replica(tmp_path / "moved", beside, lambda uri: Server())  # type: ignore[arg-type, return-value]
    assert Target.of(tmp_path / "moved", {}).uri == f"sqlite:///{tmp_path}/mlflow.db"


# --- MLflow itself ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow needs seconds to make one: made once, then copied."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    tracking.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_run(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Journal, Any]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    run, journal = run_folder(tmp_path)
    return run, journal, tracking.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")


def only_run(client: Any) -> Any:
    found = client.search_runs([client.get_experiment_by_name("hjepa").experiment_id])
    assert len(found) == 1
    return found[0]


def history(client: Any, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(only_run(client).info.run_id, key)]


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
    Replica(run, Target.of(run), tracking.connect).send(over=False)
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
