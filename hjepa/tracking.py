"""The journal of a run, mirrored to MLflow: each record once, also after an outage, a crash or a resume.

The mirror is a process of its own, `python -m hjepa.tracking RUN`, fed by the files of the run folder alone: neither importing
mlflow, nor creating a database, nor a server that does not answer touches the training thread. The same command, typed by hand,
sends what is left.

Every batch carries the metric `hjepa.records`: how many records of the journal the server has, this batch included. MLflow
stores the metrics of one call in one transaction, so that count is right whatever happened on the way, and whoever is to send
the rest asks for it first. Nothing is kept in memory while the server is away: the journal is the queue.

Where it goes: `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`, else `mlflow.db` and `mlartifacts` beside the run folder.
What is not finite is not sent, for MLflow makes 1.8e308 of infinity: the tag `hjepa.nonfinite` names it and its first step.
A server that does not answer is tried until ten minutes (`HJEPA_TRACKING_PATIENCE` seconds) after the end of the training; what
is left then is sent by the next mirror that starts for a run beside this one.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import math
import os
import posixpath
import re
import select
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hjepa import journal
from hjepa.journal import Position

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORDS = "hjepa.records"
PERIOD = 2.0
PATIENCE = 600.0
_BATCH = 900
_PARAMETERS = 400
_LENGTH = 500
_STATUS = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_CLIENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
_log = logging.getLogger("hjepa.tracking")


# --- on the trainer's side --------------------------------------------------------------------------------------------


class Mirror:
    """The mirror process of a run that is being trained. Nothing that goes wrong with it reaches the training.

    Start it once `resolved.yaml` and `versions.json` are written. The journal may come later, and may be cut back meanwhile.
    """

    def __init__(self, run: Path) -> None:
        self._run = run.resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._life: IO[str] | None = None

    @staticmethod
    def start(run: Path) -> Mirror:
        """Launches the process and returns at once; does nothing where another process has a mirror of the run."""
        mirror = Mirror(run)
        try:
            # Held until this process is gone, however it ends: so that others can tell whether the run is still trained.
            mirror._life = _locked(mirror._run / ".trainer.lock")
            mirror._launch()
        except OSError as problem:
            _log.warning("the mirror of %s to MLflow: %s", run, problem)
        return mirror

    def _launch(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "hjepa.tracking", str(self._run), "--follow"]
        # The pipe is how the mirror learns that the trainer is gone; a session of its own keeps Ctrl-C from it.
        with open(self._run / "mlflow.log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def finish(self, seconds: float = 30.0) -> bool:
        """Says that the journal is complete, and waits for at most `seconds`: whether the server has everything.

        The mirror goes on alone after that. One that died is started again, to send what it had left.
        """
        if self._life is None:
            return False
        try:
            if self._process is None or self._process.poll() is not None:
                self._launch()
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._life.close()
            return self._process.wait(seconds) == 0
        except (OSError, subprocess.SubprocessError):
            return False


# --- where a run goes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Where a run is mirrored to."""

    uri: str
    experiment: str
    artifacts: str | None
    """Where a new experiment keeps its files; None leaves it to the server."""
    chosen: bool
    """Whether somebody named the URI; the one that nobody named moves along with the folder."""

    @staticmethod
    def of(run: Path, environment: Mapping[str, str] = os.environ) -> Target:
        """What the environment says, else where the run was mirrored to before, else beside its folder."""
        note = _json(run / "mlflow.json")
        before = note.get("uri") if note.get("chosen") else None
        chosen = environment.get("MLFLOW_TRACKING_URI") or before
        uri = chosen or f"sqlite:///{run.parent / 'mlflow.db'}"
        experiment = environment.get("MLFLOW_EXPERIMENT_NAME") or note.get("experiment") or "hjepa"
        artifacts = (run.parent / "mlartifacts").as_uri() if uri.startswith(_DATABASES) else None
        return Target(uri, experiment, artifacts, chosen is not None)


# --- what the run folder says -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """A record of the journal, or a part of one that is larger than a batch."""

    upto: float
    """How many records the server has once it has this: whole, unless this is a part and more of it follow."""
    step: int
    time: int
    """Milliseconds since 1970."""
    metrics: dict[str, float]


@dataclass
class Story:
    """What the journal has told so far."""

    chunks: deque[Chunk] = field(default_factory=deque)
    tags: dict[str, str] = field(default_factory=dict)
    outcome: str | None = None
    time: int | None = None

    def take(self, entry: dict[str, Any]) -> None:
        """Learns one line."""
        self.time = _milliseconds(entry)
        if "metrics" in entry:
            self._take_record(entry)
        elif entry["event"] == "finished":
            self.outcome = entry["outcome"]
        elif entry["event"] in ("started", "resumed"):
            self.outcome = None
        elif entry["event"] == "verdicts":
            self.tags.update({f"hjepa.verdict.{level}": words[:_LENGTH] for level, words in entry["verdicts"].items()})

    def _take_record(self, entry: dict[str, Any]) -> None:
        finite = {key: value for key, value in entry["metrics"].items() if _is_finite(value)}
        lost = [f"{key} at step {entry['step']}" for key in entry["metrics"] if key not in finite]
        if lost:
            self.tags.setdefault("hjepa.nonfinite", ", ".join(lost)[:_LENGTH])
        items = [(_name(key), float(value)) for key, value in finite.items()]
        count = max(1, math.ceil(len(items) / _BATCH))
        for part in range(count):
            metrics = dict(items[part * _BATCH : (part + 1) * _BATCH])
            upto = entry["n"] + (part + 1) / count
            self.chunks.append(Chunk(upto, entry["step"], _milliseconds(entry), metrics))

    def forget(self, known: float) -> None:
        """Drops what the server has."""
        while self.chunks and self.chunks[0].upto <= known:
            self.chunks.popleft()

    def batch(self) -> list[Chunk]:
        """The next chunks that fit into one call."""
        batch: list[Chunk] = []
        size = 0
        for chunk in self.chunks:
            size += len(chunk.metrics)
            if batch and size > _BATCH:
                break
            batch.append(chunk)
        return batch


def parameters(run: Path) -> dict[str, str]:
    """The leaves of `resolved.yaml`, by dotted path: at most 400, of at most 500 characters each."""
    import yaml

    path = run / "resolved.yaml"
    resolved = yaml.safe_load(path.read_text()) if path.exists() else {}
    return dict(list(_leaves(resolved))[:_PARAMETERS])


def provenance(run: Path) -> dict[str, str]:
    """The leaves of `versions.json` as tags; the run's own identity is a tag already."""
    return {f"hjepa.{key}": value for key, value in _leaves(_json(run / "versions.json")) if key != "run_id"}


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if children:
        for key, child in children:
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif path:
        yield _name(path), (tree if isinstance(tree, str) else json.dumps(tree, default=str))[:_LENGTH]


def _name(key: str) -> str:
    """`key` in the characters that MLflow takes, and as a path that stays where it is."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key)).lstrip("./")[:250] or "_"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _milliseconds(entry: dict[str, Any]) -> int:
    return int(entry["time"] * 1000)


def _json(path: Path) -> dict[str, Any]:
    """What the file holds, or nothing: a run folder may lack any of its files."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# --- what the server has ----------------------------------------------------------------------------------------------


class Replica:
    """One run on the server, brought up to what its folder says.

    Any call to the server may fail, before or after the server has stored what it was given. `send` then raises; called again,
    it asks what the server has and starts from there.
    """

    def __init__(self, run: Path, target: Target, connect: Callable[[str], MlflowClient]) -> None:
        self._run, self._target, self._make = run, target, connect
        self._journal = run / "journal.jsonl"
        self._client: MlflowClient | None = None
        self.note(pending=True)

    def note(self, **what: Any) -> None:
        """Keeps what is worth knowing after this process in `mlflow.json`."""
        path = self._run / "mlflow.json"
        known = _json(path)
        identity = known.get("run_id") or _json(self._run / "versions.json").get("run_id") or uuid.uuid4().hex
        target = self._target
        place = {"uri": target.uri, "chosen": target.chosen, "experiment": target.experiment}
        beside = path.with_suffix(".json.new")
        beside.write_text(json.dumps({**known, "run_id": identity, **place, **what}, indent=1) + "\n")
        beside.replace(path)

    def send(self, over: bool) -> None:
        """Sends what the server lacks. `over`: nobody trains the run any more, so the journal is all there is."""
        try:
            client = self._client or self._connect()
            while self._listen():
                self._send_records(client)
            self._send_tags(client)
            self._send_status(client, over)
            self._send_files(client, over)
        except BaseException:
            self._client = None
            raise
        if over:
            self.note(pending=False)

    def _connect(self) -> MlflowClient:
        client = self._make(self._target.uri)
        experiment = client.get_experiment_by_name(self._target.experiment)
        if experiment is None:
            place = client.create_experiment(self._target.experiment, artifact_location=self._target.artifacts)
        else:
            place = experiment.experiment_id
        run = self._find(client, place)
        self._id = run.info.run_id
        self.note(experiment_id=place, mlflow_run_id=self._id)
        self._send_parameters(client, run.data.params)
        self._status, self._tags = run.info.status, dict(run.data.tags)
        self._files: dict[Path, tuple[int, int]] = {}
        # All events again, for they say what the run is now, and the metrics that are not there.
        self._known = run.data.metrics.get(RECORDS, 0.0)
        self._story, self._position = Story(tags=provenance(self._run)), Position(n=math.floor(self._known))
        self._client = client
        return client

    def _find(self, client: MlflowClient, experiment: str) -> Any:
        """The run that carries this folder's identity: there is one even if whoever created it died before noting so."""
        identity = _json(self._run / "mlflow.json")["run_id"]
        found = client.search_runs([experiment], f"tags.`hjepa.run_id` = '{identity}'", max_results=1)
        if found:
            return found[0]
        first = next(journal.read(self._journal), {"time": time.time()})
        return client.create_run(experiment, _milliseconds(first), {"hjepa.run_id": identity}, self._run.name)

    def _listen(self) -> bool:
        """Takes in what is new in the journal: whether there was anything."""
        entries, self._position = journal.follow(self._journal, self._position)
        for entry in entries:
            self._story.take(entry)
        self._story.forget(self._known)
        return bool(entries)

    def _send_parameters(self, client: MlflowClient, known: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        # Only those that are not there: MLflow keeps the first value of each, also where a resumed run has another.
        missing = {key: value for key, value in parameters(self._run).items() if key not in known}
        if missing:
            client.log_batch(self._id, params=[Param(key, value) for key, value in missing.items()])

    def _send_records(self, client: MlflowClient) -> None:
        from mlflow.entities import Metric

        while batch := self._story.batch():
            last = batch[-1]
            metrics = [Metric(key, value, c.time, c.step) for c in batch for key, value in c.metrics.items()]
            # At its own step the count never goes back, whatever the clock did: the latest is the greatest.
            count = Metric(RECORDS, last.upto, last.time, math.floor(last.upto))
            client.log_batch(self._id, metrics=[*metrics, count])
            self._known = last.upto
            self._story.forget(self._known)

    def _send_tags(self, client: MlflowClient) -> None:
        from mlflow.entities import RunTag

        changed = {key: value for key, value in self._story.tags.items() if self._tags.get(key) != value}
        if changed:
            client.log_batch(self._id, tags=[RunTag(key, value) for key, value in changed.items()])
            self._tags.update(changed)

    def _send_status(self, client: MlflowClient, over: bool) -> None:
        status = _STATUS.get(self._story.outcome or "", "KILLED") if over else "RUNNING"
        if status == self._status:
            return
        if over:
            client.set_terminated(self._id, status, self._story.time)
        else:
            client.update_run(self._id, status)
        self._status = status

    def _send_files(self, client: MlflowClient, over: bool) -> None:
        wanted = [self._run / "study.yaml", self._run / "resolved.yaml"]
        if over:
            wanted += [self._journal, *sorted((self._run / "figures").rglob("*"))]
        for path in wanted:
            if not path.is_file():
                continue
            stamp = (path.stat().st_mtime_ns, path.stat().st_size)
            if self._files.get(path) != stamp:
                folder = path.parent.relative_to(self._run).as_posix()
                client.log_artifact(self._id, str(path), None if folder == "." else folder)
                self._files[path] = stamp


# --- the process ------------------------------------------------------------------------------------------------------


def follow(
    replica: Replica, wait: Callable[[float], bool], superseded: Callable[[], bool], patience: float, idle: Callable[[], None]
) -> bool:
    """Mirrors until the trainer is gone and all is sent: whether it is.

    `wait(seconds)` says whether the trainer lives, at the latest after so long. Once it is gone, a server that does not answer
    is tried for `patience` seconds, unless a mirror that a new trainer started waits to take over. `idle` is called between.
    """
    pause, alive, said, deadline = 0.0, True, "", math.inf
    while True:
        was_alive, alive = alive, wait(pause)
        if was_alive and not alive:
            pause, deadline = 0.0, time.monotonic() + patience
        if not alive and superseded():
            return False
        try:
            replica.send(over=not alive)
            if not alive:
                return True
            pause, said = PERIOD, ""
            idle()
        except Exception as failure:
            pause = min(30.0, max(1.0, 2 * pause))
            problem = _first_line(failure)
            if problem != said:
                _log.warning("nothing is lost, trying again: %s", problem)
            said = problem
            if time.monotonic() + pause > deadline:
                return False


def catch_up(run: Path, environment: Mapping[str, str], connect: Callable[[str], MlflowClient]) -> bool:
    """Sends what is left of a run that has no mirror: whether all is sent. Raises what the server's client raises."""
    with _only_mirror(run, wait=False) as superseded:
        if superseded is None:
            return False
        over = not _is_locked(run / ".trainer.lock")
        Replica(run, Target.of(run, environment), connect).send(over)
        return over


def _pending_siblings(run: Path) -> Iterator[Path]:
    for note in sorted(run.parent.glob("*/mlflow.json")):
        if note.parent != run and _json(note).get("pending"):
            yield note.parent


def _catch_up_one(siblings: Iterator[Path], connect: Callable[[str], MlflowClient]) -> None:
    for sibling in siblings:
        try:
            catch_up(sibling, {}, connect)
        except Exception as failure:
            _log.warning("%s is still not sent: %s", sibling.name, _first_line(failure))
        return


@contextmanager
def _only_mirror(run: Path, wait: bool) -> Iterator[Callable[[], bool] | None]:
    """Makes this the only mirror of a run; gives what tells a waiting one whether the next waits, or None if there is one.

    Who waits writes a word of its own into the lock's file first, so that the one before sees it and gives way.
    """
    path = run / ".mirror.lock"
    word = uuid.uuid4().hex
    if wait:
        path.write_text(word)
    try:
        lock = _locked(path, wait)
    except BlockingIOError:
        yield None
        return
    with lock:
        yield lambda: path.read_text() != word


def _locked(path: Path, wait: bool = False) -> IO[str]:
    file = open(path, "a")  # noqa: SIM115 (open files hold locks)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _is_locked(path: Path) -> bool:
    try:
        _locked(path).close()
    except BlockingIOError:
        return True
    return False


class _Trainer:
    """The process that holds the other end of our standard input."""

    def __init__(self) -> None:
        self._process = os.getppid()
        self._alive = True

    def wait(self, seconds: float) -> bool:
        if not self._alive:
            time.sleep(seconds)
        elif select.select([sys.stdin], [], [], seconds)[0] or os.getppid() != self._process:
            # What else may hold the pipe is a worker that outlived it.
            self._alive = False
        return self._alive


def _first_line(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}".splitlines()[0][:_LENGTH]


def connect(uri: str) -> MlflowClient:
    """A client that says nothing and fails soon: the mirror retries, in its own time."""
    for key, value in _CLIENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri, registry_uri=uri)


def _follow_trainer(run: Path) -> bool:
    trainer = _Trainer()
    os.nice(10)
    siblings = _pending_siblings(run)
    with _only_mirror(run, wait=True) as superseded:
        assert superseded is not None
        replica = Replica(run, Target.of(run), connect)
        patience = float(os.environ.get("HJEPA_TRACKING_PATIENCE", PATIENCE))
        return follow(replica, trainer.wait, superseded, patience, lambda: _catch_up_one(siblings, connect))


def main(arguments: Sequence[str] | None = None) -> int:
    """`RUN`: sends what is left, 0 if that was possible and is all."""
    parser = argparse.ArgumentParser(prog="python -m hjepa.tracking", description="Sends what MLflow lacks of a run.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--follow", action="store_true", help="mirror until standard input ends (used by the trainer)")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    run = options.run.resolve()
    if options.follow:
        return 0 if _follow_trainer(run) else 1
    if not (run / "journal.jsonl").exists():
        print(f"{run}: not the folder of a run, it has no journal.jsonl", file=sys.stderr)
        return 2
    try:
        complete = catch_up(run, os.environ, connect)
    except Exception as failure:
        complete = False
        print(f"{run}: not all is sent: {_first_line(failure)}", file=sys.stderr)
    else:
        print(f"{run}: " + ("all is sent" if complete else "still trained, or a mirror is at work on it"), file=sys.stderr)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
