"""What do the journal and its mirror to MLflow cost the training thread a step?

The step is a small network of about ten milliseconds, and every tenth is recorded, as in studies: over ten times as often as
the quickstart records. `hjepa` is with a journal, and a mirror process that follows it; `plain` is the same steps with neither,
the mirror stopped. So the difference holds the writing, and what the mirror takes from the training by working beside it.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.harness import Bench, Own, run
from hjepa import registry, runs, study
from hjepa.journal import Journal, Unwritten
from hjepa.tracking import PERIOD, Mirror

EVERY = 10
VALUES = {f"loss/level/term{number}": 0.1 * number for number in range(40)}
"""A record with the diagnostics of two levels."""


class Work:
    """A step of training, and how many there were."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.step = bench, 0
        self.model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512)).to(bench.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.data = torch.randn(256, 512, device=bench.device)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.data).square().mean().backward()
        self.optimizer.step()
        self.bench.synchronize()
        self.step += 1


def steps(name: str, work: Work, journal: Journal | Unwritten, seconds: float) -> Own:
    """The mean of whole steps, which feel the mirror, and the median of the records alone, over so many seconds."""
    records = []
    begun = time.perf_counter()
    first, now = work.step, begun
    while now < begun + seconds:
        for _ in range(EVERY):
            work()
        before = time.perf_counter()
        journal.metrics(work.step, VALUES)
        now = time.perf_counter()
        records.append(now - before)
    return Own({name: (now - begun) / (work.step - first), f"{name}, record": statistics.median(records)})


def connected(note: Path) -> bool:
    return note.exists() and "mlflow_run_id" in note.read_text()


@contextmanager
def mirrored(run_folder: Path, quick: bool) -> Iterator[int]:
    """The process that mirrors a run, stopped. Afterwards it is let go, and must send everything."""
    with patch.dict(os.environ, MLFLOW_TRACKING_URI=f"sqlite:///{run_folder.parent / 'mlflow.db'}"):
        mirror = Mirror.start(run_folder)
    process = mirror._process
    assert process is not None
    try:
        while not quick and process.poll() is None and not connected(run_folder / "mlflow.json"):
            time.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        yield process.pid
        process.send_signal(signal.SIGCONT)
        assert quick or mirror.finish(60.0), "the mirror did not send everything"
    finally:
        process.kill()
        process.wait()


def measure(bench: Bench) -> None:
    found = registry.load()
    plan = study.read("quickstart", [], found)
    seconds = 0.02 if bench.quick else 1.5 * PERIOD
    with TemporaryDirectory() as folder:
        place = runs.create(plan, Path(folder) / "run", found)
        work = Work(bench)
        with closing(Journal(place.journal)) as journal, mirrored(place.path, bench.quick) as process:

            def followed() -> Own:
                os.kill(process, signal.SIGCONT)
                try:
                    return steps("with", work, journal, seconds)
                finally:
                    os.kill(process, signal.SIGSTOP)

            rows = bench.rounds({"with": followed, "plain": lambda: steps("plain", work, Unwritten(), seconds)})
    bench.figure("step, tracked", "us", [1e6 * row["with"] for row in rows], [1e6 * row["plain"] for row in rows])
    bench.figure("what tracking adds to a step", "us", [1e6 * (row["with"] - row["plain"]) for row in rows])
    bench.figure(f"a record of {len(VALUES)} values", "us", [1e6 * row["with, record"] for row in rows])
    bench.figure("the same, a step", "us", [1e6 * row["with, record"] / EVERY for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
