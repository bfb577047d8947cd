"""What does a checkpoint of 50 MB cost, hashed and brought to the disk, beside torch.save and torch.load, which do neither?

A hundred float32 tensors. `save` is what a training waits for at `train.checkpoint_every`: writing, sha256, fsync, and looking
whether the other checkpoint that stays is whole. `load` verifies before it believes. Files that were just written are in the
page cache; what torch.save leaves to be written later is written before the next case begins, and is not counted.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.harness import Bench, Case, Own, Row, run
from hjepa import checkpoint
from hjepa.journal import sync

TENSORS = 100
STEP = 1
"""Of the checkpoint that is read."""


def torch_save(tensors: dict[str, Tensor], file: Path) -> Own:
    begun = time.perf_counter()
    torch.save(tensors, file)
    seconds = time.perf_counter() - begun
    sync(file)
    return Own({"torch.save": seconds})


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


def rounds(bench: Bench, folder: Path, tensors: dict[str, Tensor]) -> list[Row]:
    steps, file = itertools.count(STEP + 1), folder / "plain.pt"
    read = checkpoint.save(folder / "read", STEP, tensors, {})
    cases: dict[str, Case] = {
        "save": lambda: checkpoint.save(folder / "written", next(steps), tensors, {}),
        "torch.save": partial(torch_save, tensors, file),
        "load": partial(checkpoint.load, read),
        "torch.load": partial(torch.load, file, map_location="cpu", weights_only=True),
        "verify": partial(checkpoint._is_whole, read),
    }
    return bench.rounds(cases)


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
