"""Where does a training step of the quickstart spend its time, and how much of the machine does it use?

Data are made by the training thread, and every tenth step is recorded. For the phases the trainer's own methods are watched
from outside, each without what is watched within it; a GPU is waited for after each phase, so that there they add up to more
than a step. FLOPs are those that `hjepa.flops` counts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.harness import Bench, Case, Own, run
from hjepa import flops, loading, registry, runs, study
from hjepa.journal import Journal
from hjepa.train import Trainer

PHASES = ("data", "encode", "predict and prevention", "backward", "gradient norm", "optimizer and teacher", "logging")
ENDLESS = ["train.steps=1_000_000_000", "train.diagnose_every=1_000_000_000"]
"""No round is the last one, and looks at collapse are timed by themselves."""
SMALL = ["data.video.frames=8", "data.video.size=16", "data.video.digit_size=8", "data.video.batch=4", "data.video.held_out=8"]


class Watch:
    """Seconds by phase, each without those within it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within = [0.0]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.bench.synchronize()
        begun = time.perf_counter()
        self._within.append(0.0)
        yield
        self.bench.synchronize()
        whole = time.perf_counter() - begun
        self.seconds[name] += whole - self._within.pop()
        self._within[-1] += whole

    def method(self, owner: Any, method: str, phase: str) -> Any:
        """A patch under which each call of the method belongs to a phase."""
        return patch.object(owner, method, self.phase(phase)(getattr(owner, method)))


@contextmanager
def watched(trainer: Trainer, watch: Watch) -> Iterator[None]:
    """The trainer's phases, as long as this is open."""
    with ExitStack() as open_patches:
        for level in trainer.stack.levels.values():
            open_patches.enter_context(watch.method(level, "encode", "encode"))
        for owner, method, phase in (
            (trainer.stack, "forward", "predict and prevention"),
            (torch.Tensor, "backward", "backward"),
            (nn.utils, "get_total_norm", "gradient norm"),
            (trainer.optimizer.optimizer, "step", "optimizer and teacher"),
            (trainer.stack, "after_step", "optimizer and teacher"),
            (trainer, "_record", "logging"),
        ):
            open_patches.enter_context(watch.method(owner, method, phase))
        yield


def steps(trainer: Trainer, journal: Journal, count: int, phase: Callable[[str], AbstractContextManager[None]]) -> None:
    """As the trainer does them, with one record at the end."""
    batches = loading.batches(trainer.sources, range(trainer.done, trainer.done + count), 0, trainer.device)
    for _ in range(count):
        with phase("data"):
            step, batch = next(batches)
        outcomes = trainer.step(step, batch)
        trainer.done = step + 1
    trainer._record(journal, outcomes, False)


def by_phase(trainer: Trainer, journal: Journal, count: int, watch: Watch) -> Own:
    """Seconds a step."""
    watch.seconds.clear()
    with watched(trainer, watch), watch.phase("rest"):
        steps(trainer, journal, count, watch.phase)
    return Own({phase: watch.seconds[phase] / count for phase in (*PHASES, "rest")})


def measure(bench: Bench) -> None:
    found = registry.load()
    plan = study.read("quickstart", [*ENDLESS, f"train.device={bench.device.type}", *(SMALL if bench.quick else [])], found)
    with TemporaryDirectory() as folder:
        run_folder = runs.create(plan, Path(folder) / "run", found)
        trainer = Trainer(plan, run_folder, found, print)
        journal, watch = Journal(run_folder.journal), Watch(bench)
        count = 1 if bench.quick else plan.train.log_every
        _, batch = next(loading.batches(trainer.sources, range(1), 0, trainer.device))
        work = flops.counted(lambda: trainer.step(0, batch))
        cases: dict[str, Case] = {
            "steps": lambda: steps(trainer, journal, count, lambda phase: nullcontext()),
            "phases": lambda: by_phase(trainer, journal, count, watch),
            "look": trainer._look,
        }
        rows = bench.rounds(cases)
        journal.close()
    seconds = [row["steps"] / count for row in rows]
    bench.figure("step", "ms", [1e3 * each for each in seconds])
    for phase in (*PHASES, "rest"):
        bench.figure(f"of it {phase}", "ms", [1e3 * row[phase] for row in rows])
    bench.figure("a look at collapse, every 20 steps", "ms", [1e3 * row["look"] for row in rows])
    bench.figure("work of a step", "GFLOP", [work / 1e9])
    shares = [100 * work / 1e9 / each / row["gemm"] for each, row in zip(seconds, rows, strict=True)]
    bench.figure("share of the rate of a matrix product", "%", shares)


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
