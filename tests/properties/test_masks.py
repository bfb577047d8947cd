"""What every masking must do, whatever the grid, its options and the seed. HJEPA_MASKS says how many cases are tried of each."""

from __future__ import annotations

import math
import os
import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Packed, Spec
from hjepa.nn import grid_positions
from hjepa.nn.packing import sets
from hjepa.randomness import Key
from hjepa_masked.boxes import TRIES
from hjepa_masked.causal import Causal
from hjepa_masked.multiblock import Multiblock
from hjepa_masked.multiblock3d import Multiblock3d
from hjepa_masked.random import Random
from hjepa_masked.tube import Tube

CASES = settings(max_examples=int(os.environ.get("HJEPA_MASKS", "60")), deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**31)
SIDES = st.integers(1, 9)
ROWS = 8

Masks = dict[str, list[Packed]]


def keys(seed: int, rows: int = ROWS) -> Key:
    return Key.of(seed).fold(torch.arange(rows))


def chosen(of: Packed, tokens: int) -> Tensor:
    """(R, N): how often each token is in the set of its row."""
    found = torch.zeros(len(of.lengths), tokens, dtype=torch.int64)
    return found.index_put((sets(of), of.values[:, 0]), torch.ones(len(of.values), dtype=torch.int64), accumulate=True)


def made(kind: Any, grid: tuple[int, ...], **options: Any) -> Any:
    """The masking; a case that it refuses is none, but it must say with numbers why."""
    refused = ""
    try:
        return kind(Spec(grid=grid), **options)
    except ValueError as refusal:
        refused = str(refusal)
    assert len(re.findall(r"\d+", refused)) > 1, refused
    assume(False)


def ranges(low: float, high: float) -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda ends: (min(ends), max(ends)))


def ragged(seed: int, grid: tuple[int, ...], padded: bool) -> Tensor:
    """(ROWS, N): a smaller grid within the grid, or scattered tokens, at least two."""
    draw = torch.Generator().manual_seed(seed)
    places = grid_positions(grid)
    if padded:
        corner = (torch.rand(ROWS, 1, len(grid), generator=draw) * torch.tensor(grid)).long()
        corner[0] = torch.tensor(grid)
        return (places <= corner).all(dim=-1)
    there = torch.rand(ROWS, len(places), generator=draw) < 0.5
    there[:, [0, -1]] = True
    return there


def as_they_should_be(masks: Masks, families: tuple[str, ...], grid: tuple[int, ...], valid: Tensor | None = None) -> None:
    """P1, P2, I1, I4: sorted, unique, in range, of tokens that are there; context and targets have none in common."""
    assert tuple(masks) == families
    places, tokens = grid_positions(grid), math.prod(grid)
    for family, packs in masks.items():
        for one in packs:
            assert one.family == family
            assert one.row.tolist() == list(range(ROWS)) and len(one.lengths) == ROWS
            assert int(one.lengths.sum()) == len(one.values) == len(one.positions)
            assert torch.equal(one.positions, places[one.values[:, 0]])
            number = sets(one) * tokens + one.values[:, 0]
            assert (number.diff() > 0).all() and (one.values >= 0).all() and (one.values < tokens).all()
            assert valid is None or valid[sets(one), one.values[:, 0]].all()
        context, *targets = (chosen(one, tokens) for one in packs)
        assert not (context * sum(targets)).any()


def of_its_own(masking: Any, seed: int, valid: Tensor | None = None) -> None:
    """P7, I6, I8: a row's masks are the same beside any others, in any order."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))[: ROWS - 2]
    one = masking.sample(keys(seed), valid)
    other = masking.sample(Key(keys(seed).word[order]), None if valid is None else valid[order])
    tokens = masking_tokens(one) if valid is None else valid.shape[1]
    for family, packs in one.items():
        for whole, part in zip(packs, other[family], strict=True):
            assert torch.equal(chosen(whole, tokens)[order], chosen(part, tokens))


def masking_tokens(masks: Masks) -> int:
    return 1 + max(int(one.values.max()) for packs in masks.values() for one in packs if len(one.values))


def together(masks: Masks, tokens: int, valid: Tensor | None = None) -> None:
    """V1: context and target are all tokens that are there, and neither is empty."""
    for context, target in masks.values():
        every = torch.ones(ROWS, tokens, dtype=torch.int64) if valid is None else valid.long()
        assert torch.equal(chosen(context, tokens) + chosen(target, tokens), every)
        assert (context.lengths > 0).all() and (target.lengths > 0).all()


def corners(targets: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(R, N) rectangles -> their first corners and their sizes (R, 2)."""
    plane = targets.view(-1, *grid)
    lines = (plane.any(dim=2), plane.any(dim=1))
    return torch.stack([line.int().argmax(1) for line in lines], 1), torch.stack([line.sum(1) for line in lines], 1)


multiblocks = st.fixed_dictionaries({
    "count": st.integers(1, 6),
    "scale": ranges(0.02, 0.9),
    "aspect": ranges(0.2, 4.0),
    "context_scale": ranges(0.3, 1.0),
    "min_keep": st.integers(1, 12),
})  # fmt: skip


@CASES
@given(grid=st.tuples(SIDES, SIDES), options=multiblocks, seed=SEEDS)
def test_multiblock(grid: tuple[int, int], options: dict[str, Any], seed: int) -> None:
    """P1 to P3, P6, P7; I1, I2, I4 to I6, I8."""
    masking = made(Multiblock, grid, **options)
    masks = masking.sample(keys(seed))
    as_they_should_be(masks, ("block",), grid)
    of_its_own(masking, seed)
    context, *targets = masks["block"]
    assert len(targets) == options["count"]
    assert (context.lengths >= options["min_keep"]).all()
    tokens = math.prod(grid)
    least, most = (max(1, math.floor(tokens * share)) for share in options["scale"])
    _, first = corners(chosen(targets[0], tokens), grid)
    for target in targets:
        _, size = corners(chosen(target, tokens), grid)
        assert torch.equal(size.prod(1), target.lengths), "a rectangle is filled"
        assert torch.equal(size, first), "the targets of a sample have one size"
        height, width = size.double().unbind(1)
        assert ((height - 0.5).clamp(min=0.5) * (width - 0.5).clamp(min=0.5) <= most).all()
        assert ((height + 0.5) * (width + 0.5) >= least).all()


clips = st.fixed_dictionaries({
    "short": st.tuples(st.integers(1, 9), st.floats(0.02, 0.9)),
    "long": st.tuples(st.integers(0, 3), st.floats(0.02, 0.9)),
    "aspect": ranges(0.2, 4.0),
    "min_keep": st.integers(1, 5),
})  # fmt: skip


@CASES
@given(time=st.integers(1, 4), plane=st.tuples(SIDES, SIDES), options=clips, seed=SEEDS)
def test_multiblock3d(time: int, plane: tuple[int, int], options: dict[str, Any], seed: int) -> None:
    """P1 to P3, P7, P8; V1 to V3, V6."""
    grid = (time, *plane)
    masking = made(Multiblock3d, grid, **options)
    masks = masking.sample(keys(seed))
    as_they_should_be(masks, ("short", "long")[: 1 + (options["long"][0] > 0)], grid)
    together(masks, math.prod(grid))
    of_its_own(masking, seed)
    for context, target in masks.values():
        frames = chosen(target, math.prod(grid)).view(ROWS, time, -1)
        assert torch.equal(frames, frames[:, :1].expand_as(frames))
        assert (target.lengths % time == 0).all()
        assert (context.lengths >= options["min_keep"]).all()


@CASES
@given(time=st.integers(1, 6), keep=st.floats(0, 1), temporal=ranges(0.05, 1.0), seed=SEEDS)
def test_what_comes_late_can_be_kept_from_contexts(time: int, keep: float, temporal: tuple[float, float], seed: int) -> None:
    """V4; and blocks that last for a part of the time only are as long as they should be."""
    grid = (time, 4, 5)
    masking = made(Multiblock3d, grid, max_temporal_keep=keep, temporal_scale=temporal, short=(1, 0.3), long=(0, 0.7))
    masks = masking.sample(keys(seed))
    together(masks, math.prod(grid))
    context, target = masks["short"]
    seen = max(1, math.floor(time * keep))
    assert (context.positions[:, 0] < seen).all()
    masked = chosen(target, math.prod(grid)).view(ROWS, time, 20)[:, :seen].any(dim=2).sum(dim=1)
    assert (masked <= max(1, math.floor(time * temporal[1]))).all()


@CASES
@given(
    grid=st.one_of(st.tuples(SIDES), st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES, SIDES)), ratio=st.floats(0, 1), seed=SEEDS
)
def test_random(grid: tuple[int, ...], ratio: float, seed: int) -> None:
    """P8: the exact ratio."""
    masking = made(Random, grid, ratio=ratio)
    masks = masking.sample(keys(seed))
    as_they_should_be(masks, ("random",), grid)
    together(masks, math.prod(grid))
    of_its_own(masking, seed)
    assert set(masks["random"][1].lengths.tolist()) == {round(ratio * math.prod(grid))}


@CASES
@given(grid=st.tuples(st.integers(1, 5), SIDES, SIDES), ratio=st.floats(0, 1), seed=SEEDS)
def test_tube(grid: tuple[int, int, int], ratio: float, seed: int) -> None:
    """P8: the same places in every frame."""
    masking = made(Tube, grid, ratio=ratio)
    masks = masking.sample(keys(seed))
    as_they_should_be(masks, ("tube",), grid)
    together(masks, math.prod(grid))
    of_its_own(masking, seed)
    frames = chosen(masks["tube"][1], math.prod(grid)).view(ROWS, grid[0], -1)
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    assert set(frames[:, 0].sum(1).tolist()) == {round(ratio * grid[1] * grid[2])}


@CASES
@given(grid=st.tuples(st.integers(2, 7), SIDES, SIDES), seen=ranges(0.01, 1.0), seed=SEEDS)
def test_causal(grid: tuple[int, int, int], seen: tuple[float, float], seed: int) -> None:
    masking = Causal(Spec(grid=grid), seen=seen)
    masks = masking.sample(keys(seed))
    as_they_should_be(masks, ("future",), grid)
    together(masks, math.prod(grid))
    of_its_own(masking, seed)
    early = chosen(masks["future"][0], math.prod(grid)).view(ROWS, grid[0], -1)
    assert (early == early[..., :1]).all() and (early[:, 1:] <= early[:, :-1]).all()
    least, most = (min(grid[0] - 1, max(1, round(share * grid[0]))) for share in seen)
    assert (early[..., 0].sum(1) >= least).all() and (early[..., 0].sum(1) <= most).all()


KINDS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (Multiblock, {"min_keep": 1}),
    (Multiblock3d, {}),
    (Multiblock3d, {"max_temporal_keep": 0.5}),
    (Random, {}),
    (Tube, {"ratio": 0.6}),
    (Causal, {"seen": (0.2, 0.8)}),
)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@CASES
@given(grid=st.tuples(st.integers(2, 4), st.integers(2, 6), st.integers(2, 6)), padded=st.booleans(), seed=SEEDS)
def test_tokens_that_are_not_there(
    kind: Any, options: dict[str, Any], grid: tuple[int, int, int], padded: bool, seed: int
) -> None:
    """Rows that have smaller grids, or scattered tokens: what is not there is in no set, and no context is empty."""
    masking, valid = made(kind, grid, **options), ragged(seed, grid, padded)
    masks = masking.sample(keys(seed), valid)
    as_they_should_be(masks, masking.families, grid, valid)
    of_its_own(masking, seed, valid)
    many = valid.view(ROWS, grid[0], -1)
    several = many.any(dim=2).sum(dim=1) > 1 if kind is Causal else many.any(dim=1).sum(dim=1) > 1
    for context, *targets in masks.values():
        enough = several & (valid.sum(dim=1) > 1)
        if "max_temporal_keep" in options:
            enough = enough & (many[:, : max(1, grid[0] // 2)].flatten(1).sum(dim=1) > 1)
        assert (context.lengths > 0)[enough].all()
        if padded or kind not in (Multiblock, Multiblock3d):  # a box may lie where scattered rows have nothing
            assert all((target.lengths > 0)[enough].all() for target in targets)


# --- the law ----------------------------------------------------------------------------------------------------------


def usual(rows: int, side: int = 14, **options: Any) -> list[Tensor]:
    return [chosen(one, side**2) for one in Multiblock(Spec(grid=(side, side)), **options).sample(keys(0, rows))["block"]]


def test_blocks_are_as_large_and_as_high_as_the_papers_say() -> None:
    """V5, and the exact sizes of V-JEPA's short family."""
    context, *targets = usual(10_000)
    assert abs(context.double().mean() - 0.463) < 0.01
    area = (targets[0].sum(1) / 196).double()
    assert area.min() > 0.12 and area.max() < 0.22
    masks = Multiblock3d(Spec(grid=(1, 14, 14))).sample(keys(0, 5000))
    kept = {family: float(context.lengths.double().mean() / 196) for family, (context, _) in masks.items()}
    assert kept == pytest.approx({"short": 0.375, "long": 0.189}, abs=0.01)
    alone = Multiblock3d(Spec(grid=(1, 14, 14)), short=(1, 0.15), long=(0, 0.7)).sample(keys(0, 10_000))
    _, sizes = corners(chosen(alone["short"][1], 196), (14, 14))
    exact = {(6, 5): 0.52, (5, 6): 0.28, (5, 5): 0.11, (7, 4): 0.06, (6, 4): 0.03}
    assert {(h, w) for h, w in sizes.unique(dim=0).tolist()} == set(exact)
    for shape, share in exact.items():
        assert abs(float((sizes == torch.tensor(shape)).all(1).double().mean()) - share) < 0.015


def test_size_and_shape_are_drawn_apart() -> None:
    """P6: how large a block is says nothing of how high it is."""
    _, target, *_ = usual(4000, 64)
    _, sizes = corners(target, (64, 64))
    area, shape = sizes.prod(1).double(), (sizes[:, 0] / sizes[:, 1]).double()
    assert abs(float(torch.corrcoef(torch.stack((area, shape)))[0, 1])) < 0.06


def surprise(counts: Tensor, others: Tensor) -> float:
    """How far counts are from those of their mirror images, in standard deviations of the chi-square. Every pair is there twice."""
    both = counts + others
    pairs = int((both > 0).sum()) / 2
    return (float(((counts - others).square() / both.clamp(min=1)).sum()) / 2 - pairs) / math.sqrt(2 * pairs)


@pytest.mark.parametrize("axis", [0, 1])
def test_mirrored_blocks_are_equally_frequent(axis: int) -> None:
    """P4: chi-square over the places and sizes of one block of each of 20,000 samples."""
    _, target, *_ = usual(20_000)
    first, size = corners(target, (14, 14))
    mirrored = first.clone()
    mirrored[:, axis] = 14 - size[:, axis] - first[:, axis]
    elsewhere = (first != mirrored).any(dim=1)  # a block in the middle is its own mirror image
    code = torch.tensor([14**3, 14**2, 14, 1])
    counts, others = (
        torch.bincount((torch.cat((at, size - 1), dim=1)[elsewhere] * code).sum(dim=1), minlength=14**4).double()
        for at in (first, mirrored)
    )
    assert abs(surprise(counts, others)) < 4


@pytest.mark.parametrize("grid", [(14, 14), (5, 9), (1, 20), (2, 2), (7, 7)])
def test_every_patch_is_reached_and_its_mirror_image_as_often(grid: tuple[int, int]) -> None:
    """P4, I7: in the context and in targets. The difference of two patches is as large as chance makes it."""
    rows = 10_000
    masking = Multiblock(Spec(grid=grid), min_keep=1)
    for one in masking.sample(keys(1, rows))["block"]:
        covered = chosen(one, math.prod(grid)).view(rows, *grid).double()
        assert (covered.sum(dim=0) > 0).all()
        for axis in (1, 2):
            difference = covered - covered.flip(axis)
            far = difference.sum(0).abs() / difference.square().sum(0).sqrt().clamp(min=1)
            assert far.max() < 4.5


def test_a_square_grid_and_square_blocks_have_no_upper_side() -> None:
    """P4: transposed, where the aspect is 1."""
    covered = usual(10_000, aspect=(1.0, 1.0))[1].view(-1, 14, 14).double()
    difference = covered - covered.transpose(1, 2)
    assert (difference.sum(0).abs() / difference.square().sum(0).sqrt().clamp(min=1)).max() < 4.5


def test_a_row_that_no_draw_helps_is_relaxed_without_chance() -> None:
    """Many large blocks: after all tries targets coincide with the first one, and the context is what is left."""
    grid = (6, 6)
    masking = Multiblock(Spec(grid=grid), count=6, scale=(0.44, 0.44), aspect=(1.0, 1.0), min_keep=20)
    context, *targets = masking.sample(keys(0))["block"]
    assert context.lengths.tolist() == [20] * ROWS
    assert all(torch.equal(target.values, targets[0].values) for target in targets)
    assert TRIES < 100
