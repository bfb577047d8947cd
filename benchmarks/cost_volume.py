"""What do a warp and a cost volume cost, forward and backward, beside one that goes displacement by displacement?

The plain one pads, and for each of the (2r+1)² displacements multiplies with a shifted view and takes the mean; it warps by torch's
`grid_sample`. Volumes and gradients must agree in the same run, or there is no result. The gradient goes into both maps and the flow.
`peak` is what a process of its own holds at most beyond what it held before; on a GPU, what torch takes of it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from os import environ
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Bench, run
from hjepa.nn.warping import cost_volume, warped

SHAPES = ((4, 64, 64), (4, 64, 256))
"""Batch, channels and side."""
RADIUS = 4
FREED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Whatever is larger is given back when it is freed, so that a peak is what is held, and not what the allocator keeps by chance."""
ROOT = Path(__file__).resolve().parent.parent

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain_volume(one: Tensor, other: Tensor) -> Tensor:
    height, width = one.shape[2:]
    padded, reach = F.pad(other, (RADIUS,) * 4), range(2 * RADIUS + 1)
    parts = [(one * padded[:, :, y : y + height, x : x + width]).mean(1) for y in reach for x in reach]
    return torch.stack(parts, dim=1)


def plain_warp(image: Tensor, flow: Tensor) -> Tensor:
    height, width = image.shape[2:]
    x = torch.arange(width, device=image.device) + flow[:, 0]
    y = torch.arange(height, device=image.device)[:, None] + flow[:, 1]
    at = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), dim=-1)
    return F.grid_sample(image, at, padding_mode="border", align_corners=True)


def plain(one: Tensor, other: Tensor, flow: Tensor) -> Tensor:
    return plain_volume(one, plain_warp(other, flow))


def own(one: Tensor, other: Tensor, flow: Tensor) -> Tensor:
    return cost_volume(one, warped(other, flow), RADIUS)


def drawn(batch: int, channels: int, side: int, device: torch.device) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((batch, channels, side, side), (batch, channels, side, side), (batch, 2, side, side))
    return [torch.randn(shape, generator=draw).to(device).requires_grad_() for shape in shapes]


def both_ways(volume: Loss, given: Sequence[Tensor]) -> list[Tensor]:
    """The volume, and the gradients of a sum of all its entries, each displacement with a weight of its own."""
    found = volume(*given)
    weight = torch.arange(found.shape[1], device=found.device, dtype=found.dtype)[:, None, None].expand_as(found).contiguous()
    return [found.detach(), *torch.autograd.grad(found, given, weight)]


def agreement(given: Sequence[Tensor]) -> float:
    """The greatest difference, relative to the greatest number."""
    pairs = zip(both_ways(own, given), both_ways(plain, given), strict=True)
    return max(float((mine - theirs).abs().max() / theirs.abs().max()) for mine, theirs in pairs)


def peak(name: str, shape: tuple[int, int, int], device: torch.device) -> float:
    """MB."""
    if device.type == "cuda":
        given = drawn(*shape, device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        both_ways({"own": own, "plain": plain}[name], given)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    work = f"from benchmarks.cost_volume import held; held({name!r}, {shape!r})"
    told = subprocess.run(
        [sys.executable, "-c", work], check=True, capture_output=True, text=True, cwd=ROOT, env=environ | FREED
    )
    return float(told.stdout)


def held(name: str, shape: tuple[int, int, int]) -> None:
    """Prints how many MB this process holds at most beyond what it held before; a first small call loads what is loaded once."""
    both_ways({"own": own, "plain": plain}[name], drawn(1, 2, 8, torch.device("cpu")))
    given = drawn(*shape, torch.device("cpu"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _megabytes("VmRSS")
    both_ways({"own": own, "plain": plain}[name], given)
    print(_megabytes("VmHWM") - before)


def _megabytes(field: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024 / 1e6


def measure(bench: Bench) -> None:
    for shape in ((1, 4, 16),) if bench.quick else SHAPES:
        batch, channels, side = shape
        name, given = f"{batch} x {channels} x {side} x {side}", drawn(*shape, bench.device)
        difference = agreement(given)
        assert difference < 1e-3, f"{name}: the two differ by {difference}"
        cases = {"own": partial(both_ways, own, given), "plain": partial(both_ways, plain, given)}
        rows = bench.rounds(cases, 7 if side < 128 else 3)
        bench.figure(f"{name}, radius {RADIUS}", "ms", [1e3 * row["own"] for row in rows], [1e3 * row["plain"] for row in rows])
        bench.figure(f"{name}, peak", "MB", [peak("own", shape, bench.device)], [peak("plain", shape, bench.device)])
        bench.figure(f"{name}, greatest difference", "of the greatest number", [difference])


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
