"""What cannot be seen in the next frame, against the rule applied pixel by pixel, number by number."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.randomness import Key, integers
from hjepa_data.moving_digits import MovingDigits, scans

CPU = torch.device("cpu")


def ink(image: Tensor, corner: Tensor, side: int, x: float, y: float) -> float:
    """Of a digit at a place, bilinear between the nodes of its scan; 0 outside of its box."""
    last = len(image) - 1
    across, down = ((place - float(edge)) * last / side for place, edge in zip((x, y), corner, strict=True))
    if not (0 < across < last and 0 < down < last):
        return 0.0
    column, row = min(math.floor(across), last - 1), min(math.floor(down), last - 1)
    found = 0.0
    for below, right in product((0, 1), (0, 1)):
        weight = (down - row if below else 1 - down + row) * (across - column if right else 1 - across + column)
        found += weight * float(image[row + below, column + right])
    return found


def expected(data: MovingDigits, images: Tensor, corner: Tensor, pan: Tensor, t: int) -> Tensor:
    """(S, S) of one sample: images (G, N, N), corner (T, G, 2), pan (2,)."""
    occluded = torch.zeros(data.size, data.size, dtype=torch.bool)
    for row, column in product(range(data.size), repeat=2):
        x, y = column + 0.5, row + 0.5
        inked = [g for g in range(data.digits) if ink(images[g], corner[t, g], data.digit_size, x, y) > 0]
        owner = max(inked, default=-1)
        way = pan if owner < 0 else corner[t + 1, owner] - corner[t, owner]
        x, y = x + float(way[0]), y + float(way[1])
        above = range(owner + 1, data.digits)
        covered = any(ink(images[g], corner[t + 1, g], data.digit_size, x, y) > 0 for g in above)
        away = not (0 <= x <= data.size and 0 <= y <= data.size)
        occluded[row, column] = covered or away
    return occluded


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([0.0, 1.3]), st.sampled_from([12, 17]))
def test_occlusion_is_the_rule_pixel_by_pixel(seed: int, digits: int, drift: float, size: int) -> None:
    data = MovingDigits(seed, digits=digits, frames=3, size=size, digit_size=8, fastest=4.0, drift=drift, flow=True)
    batch = data.batch(torch.arange(2), CPU)
    key = Key.of(seed, "moving_digits", "train").fold(torch.arange(2))
    images = scans("train", CPU)[0]
    chosen = images[integers(key, "scan", 0, len(images), (digits,))]
    corner, pan = data._paths(key)[0], data._background(key)[1].double()
    for sample, t in product(range(2), range(2)):
        wanted = expected(data, chosen[sample].double(), corner[sample], pan[sample], t)
        # Where a path touches the edge of ink, rounding decides.
        assert (batch["occluded"][sample, t] != wanted).sum() <= 1, (sample, t)


def test_a_digit_covers_what_it_moves_onto_and_is_never_covered_where_it_is_on_top() -> None:
    batch = MovingDigits(1, frames=4, slowest=2.0, fastest=4.0, flow=True).batch(torch.arange(40), CPU)
    before, after = (batch["frames"][:, steps, 0] > 0 for steps in (slice(None, -1), slice(1, None)))
    assert torch.equal(batch["occluded"] & ~before, after & ~before) and (after & ~before).any()
    assert not (batch["occluded"] & before).any()


def test_what_is_not_occluded_is_found_again_where_the_flow_points() -> None:
    """Warping the next frame back gives this one, but for the blur of looking up between pixels; elsewhere it does not."""
    data = MovingDigits(3, size=48, digit_size=30, frames=3, slowest=2.0, fastest=6.0, drift=1.5, flow=True)
    batch = data.batch(torch.arange(16), CPU)
    before, after = batch["frames"][:, :-1, 0], batch["frames"][:, 1:].flatten(0, 1)
    pixels = torch.stack(torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="xy"))
    landed = (pixels + batch["flow"]).movedim(2, -1).flatten(0, 1) / 47 * 2 - 1
    found = torch.nn.functional.grid_sample(after, landed, align_corners=True, padding_mode="border").view_as(before)
    error = (found - before).abs()
    assert error[~batch["occluded"]].mean() < 0.1 * error[batch["occluded"]].mean()


@pytest.mark.parametrize("drift", [0.0, 2.0])
def test_one_frame_has_nothing_to_occlude(drift: float) -> None:
    assert MovingDigits(0, frames=1, drift=drift, flow=True).batch(torch.arange(2), CPU)["occluded"].shape == (2, 0, 32, 32)
