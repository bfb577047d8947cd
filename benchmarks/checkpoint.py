"""What does a checkpoint of 50 MB cost, hashed and brought to the disk, beside torch.save and torch.load, which do neither?

A hundred float32 tensors. `save` is what a training waits for at `train.checkpoint_every`: writing, sha256, fsync, and looking
whether the two checkpoints that stay are whole. `load` verifies before it believes. Files that were just written are in the page
cache; what torch.save leaves to be written later is written before the next case begins, and is not counted.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.harness import Bench, Case, Own, run
from hjepa import checkpoint

TENSORS = 100
STEP = 1
"""Of the checkpoint that is read."""


def then_flushed(name: str, case: Case) -> Own:
    begun = time.perf_counter()
    case()
    seconds = time.perf_counter() - begun
    os.sync()
    return Own({name: seconds})


def measure(bench: Bench) -> None:
    count = 1000 if bench.quick else 50_000_000 // (4 * TENSORS)
    tensors = {f"layer{number}.weight": torch.randn(count, device=bench.device) for number in range(TENSORS)}
    with TemporaryDirectory() as folder:
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
        rows = rounds(bench, Path(folder), tensors)
    size = 4 * count * TENSORS / 1e6
    for name in ("save", "load"):
        own, plain = ([1e3 * row[side] for row in rows] for side in (name, f"torch.{name}"))
        bench.figure(f"{name} {size:g} MB on {kind}", "ms", own, plain)
    bench.figure(f"verify {size:g} MB without reading it in", "ms", [1e3 * row["verify"] for row in rows])


def rounds(bench: Bench, folder: Path, tensors: dict[str, Tensor]) -> list[dict[str, float]]:
    steps, file = itertools.count(STEP + 1), folder / "plain.pt"
    read = checkpoint.save(folder / "read", STEP, tensors, {})

    def save() -> None:
        checkpoint.save(folder / "written", next(steps), tensors, {})

    def torch_save() -> None:
        torch.save(tensors, file)

    cases: dict[str, Case] = {
        "save": lambda: then_flushed("save", save),
        "torch.save": lambda: then_flushed("torch.save", torch_save),
        "load": lambda: checkpoint.load(read),
        "torch.load": lambda: torch.load(file, map_location="cpu", weights_only=True),
        "verify": lambda: checkpoint._is_whole(read),
    }
    return bench.rounds(cases)


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
