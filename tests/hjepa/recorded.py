"""Folders of runs and sweeps that were not trained, but hold what training records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from hjepa.journal import Journal

HEALTHY = "healthy"
DEAD = "complete collapse (std at 0.2 % of its start, 0.3 % of its scale)"
FLAT = "dimensional collapse (rank 1.2 of 16, 99 % of the variance in one direction)"
OBJECTIVE = "probe/where/r2"


def record(journal: Journal, step: int, dead: bool = False) -> None:
    left = math.exp(-step / 2) if dead else 1.0
    found = {"std_ratio": left, "rank": 8.0 + step / 10, "energy": 0.5 * left, "trivial": 1.0, "gain": 1 - 0.5 * left}
    journal.metrics(step, {f"collapse/frame/{name}": value for name, value in found.items()})


def trained(run: Path, words: str = HEALTHY, outcome: str | None = "done", score: float = 0.5, weight: float = 1.0) -> Path:
    """A run's folder. `outcome`: None where it was killed."""
    run.mkdir(parents=True)
    study = {"seed": 0, "levels": {"frame": {"name": "forecast", "prevention": [{"name": "vicreg", "std": weight}]}}}
    (run / "resolved.yaml").write_text(yaml.safe_dump(study))
    (run / "versions.json").write_text(json.dumps({"run_id": run.name.encode().hex().zfill(32)[-32:]}))
    journal = Journal(run / "journal.jsonl")
    journal.event("started", 0)
    for step in range(0, 30, 10):
        record(journal, step, dead=words == DEAD)
    journal.event("verdicts", 20, verdicts={"frame": words}, spectra={"frame": [1.0, 0.5, 0.0]})
    if words != HEALTHY:
        journal.event("alarm", 20, level="frame", verdict=words, cause="unprotected", words="nothing keeps it apart")
    if outcome == "done":
        journal.metrics(20, {OBJECTIVE: score})
    if outcome:
        journal.event("finished", 20, outcome=outcome)
    journal.close()
    return run


def trial(sweep: Path, number: int, words: str = HEALTHY, outcome: str | None = "done", **params: Any) -> Path:
    run = trained(sweep / "trials" / str(number), words, outcome, score=number / 10, weight=params.get("weight", 1.0))
    (run / "trial.json").write_text(json.dumps({"params": params}))
    return run


def sweep_folder(place: Path) -> Path:
    """A sweep without trials."""
    (place / "trials").mkdir(parents=True)
    search = {"objective": {OBJECTIVE: "maximize"}, "space": {"levels.frame.prevention.0.std": {"low": 0, "high": 1}}}
    (place / "resolved.yaml").write_text(yaml.safe_dump({"seed": 0, "search": search}))
    (place / "study.yaml").write_text("seed: 0\n")
    (place / "versions.json").write_text(json.dumps({"run_id": "5" * 32}))
    return place
