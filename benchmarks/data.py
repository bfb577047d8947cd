"""How many frames a second do the data sources give, beside plain loops over samples?

Batches of 64 samples of 24 frames of 32 x 32. The plain `moving_digits` is a NumPy loop over samples and frames, written below;
it must draw the same frames, or there is no result. The plain `arrays` reads sample after sample from the same mapped file, all
of it in the page cache. Workers start before the first round; what they read while others were measured is not counted.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Bench, Case, Own, run
from hjepa import loading
from hjepa.contracts import Batch
from hjepa.keys import SourceKeys
from hjepa.randomness import Key, integers
from hjepa_data.arrays import Arrays
from hjepa_data.moving_digits import MovingDigits, scans

FRAMES, SIZE, DIGIT = 24, 32, 14
OPTIONS: dict[str, dict[str, Any]] = {
    "four digits": {"digits": 4},
    "noise": {"noise": 0.1},
    "drifting background": {"drift": 1.0},
    "flow": {"flow": True},
}
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]


def moved(corner: Floats, velocity: Floats) -> tuple[Floats, Floats]:
    """A digit's corner and velocity one frame later: (x, y) each, in pixels."""
    corner, velocity, reach = corner + velocity, velocity.copy(), SIZE - DIGIT
    for axis in (0, 1):
        if not 0 <= corner[axis] <= reach:
            corner[axis] = -corner[axis] if corner[axis] < 0 else 2 * reach - corner[axis]
            velocity[axis] = -velocity[axis]
    return corner, velocity


def drawn(image: Floats, corner: Floats) -> Floats:
    """The canvas with a scan at `corner`, bilinear."""
    last = len(image) - 1
    at = np.clip((np.arange(SIZE) + 0.5 - corner[:, None]) * last / DIGIT, 0, last)
    low = np.minimum(np.floor(at), last - 1).astype(int)
    upper = at - low
    columns = image[:, low[0]] * (1 - upper[0]) + image[:, low[0] + 1] * upper[0]
    return columns[low[1]] * (1 - upper[1, :, None]) + columns[low[1] + 1] * upper[1, :, None]


def plain_digits(images: Floats, starts: Floats, velocities: Floats) -> Tensor:
    """(B,T,1,S,S) of scans (B,10,10), corners (B,2) and velocities (B,2) at the first frame."""
    clips = []
    for image, corner, velocity in zip(images, starts, velocities, strict=True):
        clip = []
        for _ in range(FRAMES):
            clip.append(drawn(image, corner))
            corner, velocity = moved(corner, velocity)
        clips.append(np.stack(clip))
    return torch.from_numpy(np.stack(clips)).float()[:, :, None]


def beginnings(digits: MovingDigits, ids: Tensor, batch: Batch) -> tuple[Floats, Floats, Floats]:
    """What the plain loop needs to draw the same samples: scans, corners and velocities."""
    images, _ = scans("train", torch.device("cpu"))
    chosen = integers(Key.of(digits.seed, "moving_digits", "train").fold(ids), "scan", 0, len(images))
    corners = (batch["position"][:, 0, 0].double() + 1) * (SIZE - DIGIT) / 2
    return images[chosen].double().numpy(), corners.cpu().numpy(), batch["velocity"][:, 0, 0].double().cpu().numpy()


def measure_digits(bench: Bench, size: int) -> None:
    options: dict[str, dict[str, Any]] = {"moving_digits": {}} | {
        f"moving_digits, {name}": option for name, option in OPTIONS.items()
    }
    made = {name: MovingDigits(0, frames=FRAMES, size=SIZE, digit_size=DIGIT, **option) for name, option in options.items()}
    ids = torch.arange(size)
    batch = made["moving_digits"].batch(ids, bench.device)
    begin = beginnings(made["moving_digits"], ids, batch)
    difference = float((plain_digits(*begin) - batch["frames"].cpu()).abs().max())
    assert difference < 1e-3, f"the plain loop draws other frames: they differ by {difference}"
    cases: dict[str, Case] = {name: partial(digits.batch, ids, bench.device) for name, digits in made.items()}
    rows = bench.rounds(cases | {"plain": lambda: plain_digits(*begin).to(bench.device)})
    frames = size * FRAMES
    for name in made:
        plain = [frames / row["plain"] for row in rows] if name == "moving_digits" else None
        bench.figure(name, "frames/s", [frames / row[name] for row in rows], plain, rate=True)
    bench.figure("moving_digits, greatest difference from the plain loop", "", [difference])


def plain_arrays(stored: np.ndarray[Any, Any], size: int, random: torch.Generator, device: torch.device) -> Tensor:
    rows = torch.randint(len(stored), (size,), generator=random)
    return torch.stack([torch.from_numpy(stored[row].astype(np.float32) / 255) for row in rows.tolist()]).to(device)


def reading(bench: Bench, name: str, batches: Iterator[Any], waiting: int, count: int) -> Own:
    """Seconds a batch; the first ones were read while nobody asked for them."""
    for _ in range(waiting):
        next(batches)
    begun = time.perf_counter()
    for _ in range(count):
        next(batches)
    bench.synchronize()
    return Own({name: (time.perf_counter() - begun) / count})


def measure_arrays(bench: Bench, size: int, samples: int, count: int) -> None:
    with TemporaryDirectory() as folder, ExitStack() as opened:
        file = Path(folder) / "frames.npy"
        np.save(file, np.random.default_rng(0).integers(0, 256, (samples, FRAMES, SIZE, SIZE), dtype=np.uint8))
        arrays: Any = Arrays(0, path=str(file))
        source = loading.Source("video", SourceKeys(batch=size), 0, arrays, arrays.split("train"), [])
        cases: dict[str, Case] = {
            "plain": partial(plain_arrays, np.load(file, mmap_mode="r"), size, torch.Generator(), bench.device)
        }
        for workers in (0, 1, 2):
            name, endless = f"arrays, workers: {workers}", range(10**6)
            batches = opened.enter_context(closing(loading.batches({"video": source}, endless, workers, bench.device)))
            cases[name] = partial(reading, bench, name, batches, 2 * workers, count)
        rows = bench.rounds(cases)
    frames = size * FRAMES
    for name in list(cases)[1:]:
        bench.figure(name, "frames/s", [frames / row[name] for row in rows], [frames / row["plain"] for row in rows], rate=True)


def measure(bench: Bench) -> None:
    warnings.filterwarnings("ignore", message="'set_vital' is deprecated")  # torchdata's own
    measure_digits(bench, 4 if bench.quick else 64)
    measure_arrays(bench, *((4, 16, 1) if bench.quick else (64, 2000, 40)))


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
