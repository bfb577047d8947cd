"""Where does a training step of the quickstart spend its time, and how much of the machine does it use?

The trainer's own methods are watched from outside, each without what is watched within it. FLOPs are those of matrix products and
convolutions of one step, forward and backward; attention is taken apart for the count, as torch does not count it whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Bench, Own, run
from hjepa import loading, registry, runs, study
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
        self.seconds: Counter[str] = Counter()
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


def steps(trainer: Trainer, journal: Journal, watch: Watch, count: int) -> Own:
    """Seconds a step, by phase, over as many steps as there are between two records."""
    watch.seconds.clear()
    with watched(trainer, watch), watch.phase("rest"):
        batches = loading.batches(trainer.sources, range(trainer.done, trainer.done + count), 0, trainer.device)
        for step in range(trainer.done, trainer.done + count):
            with watch.phase("data"):
                _, batch = next(batches)
            outcomes = trainer.step(step, batch)
            trainer.done = step + 1
        trainer._record(journal, outcomes)
    row = {phase: watch.seconds[phase] / count for phase in (*PHASES, "rest")}
    return Own(row, step=sum(row.values()))


class Untracked(nullcontext[None]):
    """Counts for no module in particular: torch's own tracker stumbles where a module is called without gradient."""

    parents = ("Global",)


def flops(trainer: Trainer) -> int:
    """Of one step."""
    _, batch = next(loading.batches(trainer.sources, range(1), 0, trainer.device))
    with patch("torch.utils.flop_counter.ModuleTracker", Untracked), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            trainer.step(0, batch)
    return counter.get_total_flops()


def measure(bench: Bench) -> None:
    found = registry.load()
    plan = study.read("quickstart", [*ENDLESS, f"train.device={bench.device.type}", *(SMALL if bench.quick else [])], found)
    with TemporaryDirectory() as folder:
        run_folder = runs.create(plan, Path(folder) / "run", found)
        trainer = Trainer(plan, run_folder, found, print)
        journal, watch = Journal(run_folder.journal), Watch(bench)
        count = 1 if bench.quick else plan.train.log_every
        work = flops(trainer)
        rows = bench.rounds({"steps": lambda: steps(trainer, journal, watch, count), "look": trainer._look}, 9)
        journal.close()
    for phase in ("step", *PHASES, "rest"):
        bench.figure(phase, "ms", [1e3 * row[phase] for row in rows])
    bench.figure("one look at collapse, beside the steps", "ms", [1e3 * row["look"] for row in rows])
    bench.figure("work of a step", "GFLOP", [work / 1e9])
    bench.figure("share of the matrix product's rate", "%", [100 * work / 1e9 / row["step"] / row["gemm"] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
