"""A server in one object that fails as it is told, run folders for it, and a real MLflow database that is made once."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from hjepa.journal import Journal
from hjepa.tracking import replica
from hjepa.tracking.replica import RECORDS, About, Replica, Target


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
            run = SimpleNamespace(
                id=f"run{len(self.runs)}", name=run_name, status="RUNNING", params={}, tags=dict(tags), ends=[]
            )
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

    def update_run(self, id: str, status: str | None = None, name: str | None = None) -> None:
        run = next(r for r in self.runs if r.id == id)
        self._call(lambda: run.__dict__.update(status=status or run.status, name=name or run.name))

    def set_terminated(self, id: str, status: str, end_time: int) -> None:
        self.update_run(id, status)

    def log_artifact(self, id: str, path: str, folder: str | None) -> None:
        self._call(lambda: self.files.append(Path(path).name))

    def metrics(self) -> Counter[tuple[str, int, float]]:
        return Counter((key, step, value) for _, key, step, _, value in self.rows if key != RECORDS)


def place_of(run: Path, server: Server) -> replica.Server:
    return replica.Server(Target.of(run, {}), lambda uri: server)  # type: ignore[arg-type, return-value]


def replica_of(run: Path, server: Server, about: About | None = None) -> Replica:
    return Replica(run, place_of(run, server), about)


def send_until_it_works(replica: Any, over: bool) -> None:
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


@cache
def empty_database() -> Path:
    """MLflow needs seconds to make one: made once, then copied."""
    path = Path(tempfile.mkdtemp()) / "mlflow.db"
    replica.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Journal, Any]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    shutil.copy(empty_database(), tmp_path / "mlflow.db")
    run, journal = run_folder(tmp_path)
    return run, journal, replica.connect(f"sqlite:///{tmp_path / 'mlflow.db'}")


def only_run(client: Any) -> Any:
    found = client.search_runs([client.get_experiment_by_name("hjepa").experiment_id])
    assert len(found) == 1
    return found[0]


def history(client: Any, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(only_run(client).info.run_id, key)]
