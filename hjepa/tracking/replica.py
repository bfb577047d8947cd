"""One run on the MLflow server, brought up to what its folder says: each record once, whatever fails on the way.

Every batch carries the metric `hjepa.records`: how many records of the journal the server has, this batch included. MLflow
stores the metrics of one call in one transaction, so that count is right whatever happened on the way, and whoever is to send
the rest asks for it first. Nothing is kept in memory while the server is away: the journal is the queue.

Where it goes: `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`, else `mlflow.db` and `mlartifacts` beside the run folder.
What is not finite is not sent, for MLflow makes 1.8e308 of infinity: the tag `hjepa.nonfinite` names it and its first step.
"""

from __future__ import annotations

import json
import logging
import math
import os
import posixpath
import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hjepa import journal
from hjepa.journal import Position

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORDS = "hjepa.records"
VERDICT = "hjepa.verdict."
_BATCH = 900
_PARAMETERS = 400
_LENGTH = 500
_STATUS = {"done": "FINISHED", "failed": "FAILED"}
_FILES = ("study.yaml", "resolved.yaml")
_FILES_OVER = ("journal.jsonl", "figures/**/*", "compare/*")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_CLIENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}

Connect = Callable[[str], "MlflowClient"]


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
        note = read_json(run / "mlflow.json")
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
        self.time = milliseconds(entry)
        if "metrics" in entry:
            self._take_record(entry)
        elif entry["event"] == "finished":
            self.outcome = self.tags["hjepa.outcome"] = entry["outcome"]
        elif entry["event"] in ("started", "resumed"):
            self.outcome, self.tags["hjepa.outcome"] = None, "training"
        elif entry["event"] == "verdicts":
            self.tags.update({f"{VERDICT}{level}": words[:_LENGTH] for level, words in entry["verdicts"].items()})
        elif entry["event"] == "alarm":
            self.tags[f"hjepa.alarm.{entry['level']}"] = f"step {entry['step']}: {entry['words']}"[:_LENGTH]

    def _take_record(self, entry: dict[str, Any]) -> None:
        finite = {key: value for key, value in entry["metrics"].items() if _is_finite(value)}
        lost = [f"{key} at step {entry['step']}" for key in entry["metrics"] if key not in finite]
        if lost:
            self.tags.setdefault("hjepa.nonfinite", ", ".join(lost)[:_LENGTH])
        items = [(allowed(key), float(value)) for key, value in finite.items()]
        count = max(1, math.ceil(len(items) / _BATCH))
        for part in range(count):
            metrics = dict(items[part * _BATCH : (part + 1) * _BATCH])
            upto = entry["n"] + (part + 1) / count
            self.chunks.append(Chunk(upto, entry["step"], milliseconds(entry), metrics))

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
    return {f"hjepa.{key}": value for key, value in _leaves(read_json(run / "versions.json")) if key != "run_id"}


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if children:
        for key, child in children:
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif path:
        yield allowed(path), (tree if isinstance(tree, str) else json.dumps(tree, default=str))[:_LENGTH]


def allowed(key: str) -> str:
    """`key` in the characters that MLflow takes, and as a path that stays where it is."""
    return posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", key)).lstrip("./")[:250] or "_"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def milliseconds(entry: Mapping[str, Any]) -> int:
    """When something was recorded, since 1970."""
    return int(entry["time"] * 1000)


def read_json(path: Path) -> dict[str, Any]:
    """What the file holds, or nothing: a run folder may lack any of its files."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# --- what the server has ----------------------------------------------------------------------------------------------


class Server:
    """Where a target's runs are: connected to at the first call, and anew after a failure."""

    def __init__(self, target: Target, connect: Connect) -> None:
        self.target, self._connect = target, connect
        self._client: MlflowClient | None = None
        self._experiment: str | None = None

    @property
    def client(self) -> MlflowClient:
        """What calls go through."""
        if self._client is None:
            self._client = self._connect(self.target.uri)
        return self._client

    @property
    def experiment(self) -> str:
        """The number of the target's experiment, which is made where there is none."""
        if self._experiment is None:
            found = self.client.get_experiment_by_name(self.target.experiment)
            self._experiment = found.experiment_id if found is not None else self._created()
        return self._experiment

    def _created(self) -> str:
        return self.client.create_experiment(self.target.experiment, artifact_location=self.target.artifacts)

    def drop(self) -> None:
        """Nothing is taken for granted any more."""
        self._client = self._experiment = None


@dataclass(frozen=True)
class About:
    """What a run is on the server, beside what its folder says."""

    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] | None = None
    """In place of all leaves of its study."""
    ends: str = "stopped"
    """How it ended, where its journal does not say."""


class Replica:
    """One run on the server, brought up to what its folder says.

    Any call to the server may fail, before or after the server has stored what it was given. `send` then raises; called again,
    it asks what the server has and starts from there.
    """

    def __init__(self, run: Path, server: Server, about: About | None = None) -> None:
        self._run, self._server, self._about = run, server, about or About()
        self._journal = run / "journal.jsonl"
        self._known_to_exist = False
        self.note(pending=True)

    @property
    def id(self) -> str:
        """The server's word for the run, once something was sent."""
        return self._id

    @property
    def ended(self) -> bool:
        """Whether the journal says that nobody will go on with this run."""
        return self._known_to_exist and self._story.outcome not in (None, "stopped")

    @property
    def verdicts(self) -> list[str]:
        """What was last said of each level."""
        return [words for key, words in self._story.tags.items() if key.startswith(VERDICT)]

    def note(self, **what: Any) -> None:
        """Keeps what is worth knowing after this process in `mlflow.json`."""
        path = self._run / "mlflow.json"
        known = read_json(path)
        identity = known.get("run_id") or read_json(self._run / "versions.json").get("run_id") or uuid.uuid4().hex
        target = self._server.target
        place = {"uri": target.uri, "chosen": target.chosen, "experiment": target.experiment}
        beside = path.with_suffix(".json.new")
        beside.write_text(json.dumps({**known, "run_id": identity, **place, **what}, indent=1) + "\n")
        beside.replace(path)

    def say(self, words: str) -> None:
        """What MLflow shows at the head of the run, from the next `send` on."""
        self._story.tags["mlflow.note.content"] = words

    def send(self, over: bool) -> None:
        """Sends what the server lacks. `over`: nobody trains the run any more, so the journal is all there is."""
        try:
            if not self._known_to_exist:
                self._meet()
            while self._listen():
                self._send_records()
            self._send_tags()
            self._send_status(over)
            self._send_files(over)
        except BaseException:
            self._known_to_exist = False
            self._server.drop()
            raise
        if over:
            self.note(pending=False, bytes=self._position.bytes)

    def _meet(self) -> None:
        """Finds the run on the server, or makes it, and learns what is there."""
        run = self._find()
        self._id = run.info.run_id
        self.note(experiment_id=self._server.experiment, mlflow_run_id=self._id)
        self._send_parameters(run.data.params)
        self._status, self._tags = run.info.status, dict(run.data.tags)
        self._files: dict[Path, tuple[int, int]] = {}
        # All events again, for they say what the run is now, and the metrics that are not there.
        self._known = run.data.metrics.get(RECORDS, 0.0)
        self._story = Story(tags={**provenance(self._run), **self._about.tags})
        self._position = Position(n=math.floor(self._known))
        self._known_to_exist = True

    def _find(self) -> Any:
        """The run that carries this folder's identity: there is one even if whoever created it died before noting so."""
        identity = read_json(self._run / "mlflow.json")["run_id"]
        client, experiment = self._server.client, self._server.experiment
        found = client.search_runs([experiment], f"tags.`hjepa.run_id` = '{identity}'", max_results=1)
        if found:
            return found[0]
        begun = next(journal.read(self._journal), None) if self._journal.exists() else None
        tags = {"hjepa.run_id": identity, **self._about.tags}
        return client.create_run(
            experiment, milliseconds(begun or {"time": time.time()}), tags, self._about.name or self._run.name
        )

    def _listen(self) -> bool:
        """Takes in what is new in the journal: whether there was anything."""
        entries, self._position = journal.follow(self._journal, self._position)
        for entry in entries:
            self._story.take(entry)
        self._story.forget(self._known)
        return bool(entries)

    def _send_parameters(self, known: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        # Only those that are not there: MLflow keeps the first value of each, also where a resumed run has another.
        wanted = self._about.parameters if self._about.parameters is not None else parameters(self._run)
        missing = {key: value for key, value in wanted.items() if key not in known}
        if missing:
            self._server.client.log_batch(self._id, params=[Param(key, value) for key, value in missing.items()])

    def _send_records(self) -> None:
        from mlflow.entities import Metric

        while batch := self._story.batch():
            last = batch[-1]
            metrics = [Metric(key, value, c.time, c.step) for c in batch for key, value in c.metrics.items()]
            # At its own step the count never goes back, whatever the clock did: the latest is the greatest.
            count = Metric(RECORDS, last.upto, last.time, math.floor(last.upto))
            self._server.client.log_batch(self._id, metrics=[*metrics, count])
            self._known = last.upto
            self._story.forget(self._known)

    def _send_tags(self) -> None:
        from mlflow.entities import RunTag

        changed = {key: value for key, value in self._story.tags.items() if self._tags.get(key) != value}
        if changed:
            self._server.client.log_batch(self._id, tags=[RunTag(key, value) for key, value in changed.items()])
            self._tags.update(changed)

    def _send_status(self, over: bool) -> None:
        status = _STATUS.get(self._story.outcome or self._about.ends, "KILLED") if over else "RUNNING"
        if status == self._status:
            return
        if over:
            self._server.client.set_terminated(self._id, status, self._story.time)
        else:
            self._server.client.update_run(self._id, status)
        self._status = status

    def _send_files(self, over: bool) -> None:
        for pattern in (*_FILES, *(_FILES_OVER if over else ())):
            for path in sorted(self._run.glob(pattern)):
                if path.is_file():
                    self._send_file(path)

    def _send_file(self, path: Path) -> None:
        stamp = (path.stat().st_mtime_ns, path.stat().st_size)
        if self._files.get(path) != stamp:
            folder = path.parent.relative_to(self._run).as_posix()
            self._server.client.log_artifact(self._id, str(path), None if folder == "." else folder)
            self._files[path] = stamp


def connect(uri: str) -> MlflowClient:
    """A client that says nothing and fails soon: the mirror retries, in its own time."""
    for key, value in _CLIENT.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri, registry_uri=uri)
