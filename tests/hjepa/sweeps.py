"""Small sweeps for all tests here."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hjepa import journal, registry, study, sweep
from hjepa.sweep import Sweep, Work

REGISTRY = registry.load()
TINY: dict[str, Any] = {
    "data": {"video": {"name": "moving_digits", "frames": 6, "size": 16, "digit_size": 8, "batch": 4}},
    "levels": {
        "frame": {
            "name": "forecast",
            "encoder": {"name": "conv", "width": 8, "base": 4, "stages": 2},
            "predictor": {"name": "causal", "depth": 1, "heads": 2},
            "energy": "l2",
            "prevention": ["vicreg"],
        }
    },
    "train": {"steps": 6, "log_every": 1, "diagnose_every": 2, "checkpoint_every": 2, "device": "cpu", "track": False},
    "evaluate": {"samples": 8},
    "probes": {"where": {"name": "regression", "level": "frame", "target": "position"}},
}
SEARCH: dict[str, Any] = {
    "objective": {"probe/where/r2": "maximize"},
    "space": {
        "levels.frame.prevention.0.std": {"low": 1.0, "high": 100.0, "log": True},
        "levels.frame.energy": {"choice": {"near": "l1", "far": "l2"}},
    },
}
RATES = {"train.optimizer.lr": {"choice": {"high": 0.01, "low": 0.001}}}
"""With the learning rate as the objective, every trial is foreseeable."""


def planned(train: dict[str, Any] | None = None, **keys: Any) -> study.Study:
    raw = {**TINY, "train": {**TINY["train"], **(train or {})}, "search": {**SEARCH, **keys}}
    plan = study.parse(raw, REGISTRY, name="tiny")
    plan.complain()
    return plan


def opened(folder: Path, plan: study.Study | None = None, url: str | None = None) -> Sweep:
    return Sweep(sweep.enter(plan or planned(), folder, REGISTRY), REGISTRY, url)


def states(one: Sweep) -> list[str]:
    return [trial.state.name for trial in one.trials]


def events(run: Path, *kinds: str) -> list[tuple[str, int]]:
    """Of those that are written by now: a worker may be in the middle of the last line."""
    return [(record["event"], record["step"]) for record in journal.read(run / "journal.jsonl") if record.get("event") in kinds]


def quiet(message: str) -> None:
    """Nothing is said."""


def until(holds: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
    return found


class Killed(BaseException):
    """What nobody catches."""


def interrupted(one: Sweep, monkeypatch: pytest.MonkeyPatch, at: int = 5) -> None:
    """Its next trial loses its worker at a step."""
    watch = Work._watch

    def killing(self: Work, trainer: Any, metrics: Any) -> None:
        watch(self, trainer, metrics)
        if trainer.done == at:
            raise Killed

    monkeypatch.setattr(Work, "_watch", killing)
    with pytest.raises(Killed):
        one.work(2, quiet)
    monkeypatch.setattr(Work, "_watch", watch)


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of three trials."""
    one = opened(tmp_path_factory.mktemp("sweeps") / "done", planned(constraints={"collapse/frame/std_ratio": {"at_least": 0}}))
    one.work(3, quiet)
    return one


@pytest.fixture
def postgres() -> Iterator[str]:
    """A server of its own; skipped where PostgreSQL is not installed."""
    pytest.importorskip("psycopg")
    script = str(Path(__file__).parents[1] / "postgres.sh")
    with tempfile.TemporaryDirectory(prefix="hjepa") as folder:
        os.chmod(folder, 0o755)
        started = subprocess.run(["sh", script, "start", f"{folder}/p"], stdout=subprocess.PIPE, text=True, check=False)
        if started.returncode == 77:
            pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
        assert started.returncode == 0
        yield started.stdout.strip()
        subprocess.run(["sh", script, "stop", f"{folder}/p"], check=True)
