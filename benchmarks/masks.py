"""How many images a second are masked, beside a plain loop that draws image by image as the papers describe it?

One core, on the CPU, where loaders draw masks. The plain sampler is that of I-JEPA (arXiv:2301.08243) and of V-JEPA (arXiv:2404.08471)
as they are published: block sizes once a batch, scale and aspect of I-JEPA from one and the same random number, its last row and column
never reached, and a batch's contexts cut to the shortest. That it draws what they draw is checked against the exact law of its block
sizes before anything is timed. hjepa's law differs on purpose (each sample's own sizes, every place reached, nothing cut), so that
`kept` says how much of the context that was drawn reaches the encoder.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Bench, run
from hjepa.contracts import Masking, Spec
from hjepa.randomness import Key
from hjepa_masked.multiblock import Multiblock
from hjepa_masked.multiblock3d import Multiblock3d

BATCHES = (16, 64, 128)
COUNT, SCALE, ASPECT, AROUND, LEAST, TRIES = 4, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), 10, 20
FAMILIES = ((8, 0.15), (2, 0.7))

EXACT = {
    14: {(5, 6): 0.265, (6, 5): 0.126, (6, 6): 0.218, (7, 5): 0.364, (8, 5): 0.026},
    16: {(5, 7): 0.047, (6, 6): 0.016, (6, 7): 0.279, (7, 6): 0.289, (8, 6): 0.296, (9, 6): 0.073},
}
"""Side of the grid -> (height, width) of I-JEPA's targets -> how often, to the last digit."""

Size = tuple[int, int]


def size(side: int, scale: tuple[float, float], aspect: tuple[float, float], draw: torch.Generator) -> Size:
    """Height and width of a block: one number is both how large and how tall it is."""
    share = torch.rand(1, generator=draw).item()
    area = int(side * side * (scale[0] + share * (scale[1] - scale[0])))
    ratio = aspect[0] + share * (aspect[1] - aspect[0])
    height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    return min(height, side - 1), min(width, side - 1)


def block(side: int, shape: Size, free: Sequence[Tensor], draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of a block in what is free, and (side, side) what is free beside it; the upper ends of the places are left out.

    Where too little is left, after so many tries one of `free` fewer is asked for.
    """
    tries = 0
    while True:
        top = torch.randint(0, side - shape[0], (1,), generator=draw)
        left = torch.randint(0, side - shape[1], (1,), generator=draw)
        mask = torch.zeros(side, side, dtype=torch.int32)
        mask[top : top + shape[0], left : left + shape[1]] = 1
        for places in free[: max(0, len(free) - tries // TRIES)]:
            mask *= places
        found = mask.flatten().nonzero().squeeze(1)
        if len(found) > LEAST:
            break
        tries += 1
    beside = torch.ones(side, side, dtype=torch.int32)
    beside[top : top + shape[0], left : left + shape[1]] = 0
    return found, beside


def plain_multiblock(side: int, batch: int, draw: torch.Generator) -> tuple[list[Tensor], float]:
    """A batch's contexts and targets (B, M), cut to the shortest, and the share of the contexts that is kept."""
    target, around = size(side, SCALE, ASPECT, draw), size(side, AROUND, (1.0, 1.0), draw)
    contexts: list[Tensor] = []
    targets: list[list[Tensor]] = [[] for _ in range(COUNT)]
    for _ in range(batch):
        hidden = [block(side, target, [], draw) for _ in range(COUNT)]
        for many, (found, _) in zip(targets, hidden, strict=True):
            many.append(found)
        contexts.append(block(side, around, [free for _, free in hidden], draw)[0])
    collated = [torch.stack([one[: min(map(len, many))] for one in many]) for many in (contexts, *targets)]
    return collated, collated[0].numel() / sum(map(len, contexts))


def plain_multiblock3d(time: int, side: int, batch: int, draw: torch.Generator) -> list[Tensor]:
    """For each family the contexts and the targets of a batch, all of them cut to the shortest."""
    found: list[Tensor] = []
    for count, share in FAMILIES:
        area = int(side * side * share)
        ratio = ASPECT[0] + torch.rand(1, generator=draw).item() * (ASPECT[1] - ASPECT[0])
        shape = min(side, round(math.sqrt(area * ratio))), min(side, round(math.sqrt(area / ratio)))
        seen: list[Tensor] = []
        hidden: list[Tensor] = []
        while len(seen) < batch:
            mask = torch.ones(time, side, side, dtype=torch.int32)
            for _ in range(count):
                top = int(torch.randint(0, side - shape[0] + 1, (1,), generator=draw))
                left = int(torch.randint(0, side - shape[1] + 1, (1,), generator=draw))
                mask[:, top : top + shape[0], left : left + shape[1]] = 0
            flat = mask.flatten()
            if flat.any():
                seen.append(flat.nonzero().squeeze(1))
                hidden.append((1 - flat).nonzero().squeeze(1))
        found += [torch.stack([one[: min(map(len, many))] for one in many]) for many in (seen, hidden)]
    return found


def surprise(side: int, draws: int, draw: torch.Generator) -> float:
    """Chi-square over its degrees of freedom, of the sizes of I-JEPA's targets against their exact law; about 1 if they agree."""
    seen = Counter(size(side, SCALE, ASPECT, draw) for _ in range(draws))
    exact = EXACT[side]
    assert set(seen) <= set(exact), f"sizes that the law does not have: {set(seen) - set(exact)}"
    return sum((seen[shape] - draws * share) ** 2 / (draws * share) for shape, share in exact.items()) / (len(exact) - 1)


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(bench: Bench) -> None:
    draw = torch.Generator().manual_seed(0)
    for side in EXACT:
        found = surprise(side, 4000, draw)
        assert found < 4, f"{side} x {side}: the plain sampler does not draw what the paper does: {found}"
    with one_thread():
        for batch in (4,) if bench.quick else BATCHES:
            compare(bench, f"I-JEPA, 14 x 14, batch {batch}", batch, Multiblock(Spec(grid=(14, 14))), 14, draw)
        clips = 2 if bench.quick else 24
        clipped(bench, f"V-JEPA, 8 x 14 x 14, two families, batch {clips}", clips, Multiblock3d(Spec(grid=(8, 14, 14))), draw)


def compare(bench: Bench, name: str, batch: int, masking: Masking, side: int, draw: torch.Generator) -> None:
    key = Key.of(0, "masks").fold(torch.arange(batch))
    rows = bench.rounds({"own": partial(masking.sample, key), "plain": partial(plain_multiblock, side, batch, draw)})
    bench.figure(name, "images/s", [batch / row["own"] for row in rows], [batch / row["plain"] for row in rows], rate=True)
    kept = [plain_multiblock(side, batch, draw)[1] for _ in range(2 if bench.quick else 40)]
    bench.figure(f"{name}, share of the drawn context that is kept", "", [1.0], [sum(kept) / len(kept)], rate=True)


def clipped(bench: Bench, name: str, batch: int, masking: Masking, draw: torch.Generator) -> None:
    key = Key.of(0, "masks").fold(torch.arange(batch))
    rows = bench.rounds({"own": partial(masking.sample, key), "plain": partial(plain_multiblock3d, 8, 14, batch, draw)})
    bench.figure(name, "clips/s", [batch / row["own"] for row in rows], [batch / row["plain"] for row in rows], rate=True)


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
