"""Motions are undone exactly, and nothing travels further than was allowed."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.randomness import Key
from hjepa_data.motions import Motion, drawn
from hjepa_data.outlines import outline

REACH, SHARES = 30.0, (5.0, 2.0, 1.0)


def motion(seed: int, frames: int, samples: int = 3) -> Motion:
    centre = 20 * torch.rand(samples, 2, generator=torch.Generator().manual_seed(seed)) - 10
    return drawn(Key.of(seed).fold(torch.arange(samples)), centre, REACH, *SHARES, frames)


def points(seed: int, frames: int, samples: int = 3) -> Tensor:
    """(B, T, 2, 6, 6) within the reach, the same at all times."""
    draw = torch.randn(samples, 1, 2, 6, 6, generator=torch.Generator().manual_seed(seed + 1))
    length = torch.rand(samples, 1, 1, 6, 6, generator=torch.Generator().manual_seed(seed + 2))
    return (REACH * length * draw / draw.norm(dim=2, keepdim=True)).expand(-1, frames, -1, -1, -1)


def times(frames: int) -> Tensor:
    return torch.arange(frames) - (frames - 1) / 2


@given(st.integers(0, 10**6), st.integers(1, 9))
def test_every_place_has_its_point(seed: int, frames: int) -> None:
    moving, point, time = motion(seed, frames), points(seed, frames), times(frames)
    torch.testing.assert_close(moving.origin(moving.place(point, time), time), point, atol=1e-3, rtol=0)
    torch.testing.assert_close(moving.place(moving.origin(point, time), time), point, atol=1e-3, rtol=0)


@given(st.integers(0, 10**6), st.integers(2, 9))
def test_a_way_is_the_difference_of_two_places_and_never_too_long(seed: int, frames: int) -> None:
    moving, point, time = motion(seed, frames), points(seed, frames), times(frames)
    way = moving.way(point, time)[:, :-1]
    torch.testing.assert_close(way, moving.place(point, time).diff(dim=1), atol=1e-4, rtol=0)
    assert way.norm(dim=2).max() <= sum(SHARES) + 1e-4


def test_waves_that_the_matrix_carries_along_stay_within_their_share() -> None:
    """Late in a long clip, where it has turned and grown most, and so have they."""
    centre, angle = torch.zeros(300, 2), torch.linspace(0, 6.28, 25)
    ring = 5 * torch.stack([angle.cos(), angle.sin()]).view(1, 1, 2, 5, 5).expand(300, 9, -1, -1, -1)
    way = drawn(Key.of(0).fold(torch.arange(300)), centre, 5.0, 0.0, 4.0, 4.0, 9).way(ring, times(9))[:, :-1]
    assert 5 < way.norm(dim=2).max() <= 8


def test_motions_are_affine_and_more() -> None:
    """Each of the three parts is there: taken away, the way of a point is another one."""
    point, time, centre = points(0, 2), times(2), torch.zeros(3, 2)
    key = Key.of(0).fold(torch.arange(3))
    whole = drawn(key, centre, REACH, *SHARES, 2).way(point, time)
    for missing in range(3):
        shares = [0.0 if part == missing else share for part, share in enumerate(SHARES)]
        assert (drawn(key, centre, REACH, *shares, 2).way(point, time) - whole).norm(dim=2).max() > 0.5
    # Without waves flow is affine: its second differences along any line are 0.
    line = torch.linspace(-20, 20, 6).expand(3, 2, 2, 6, 6)
    straight, bent = (
        drawn(key, centre, REACH, 5.0, 2.0, bend, 2).way(line, time).diff(n=2, dim=4).abs().max() for bend in (0, 1)
    )
    assert straight < 1e-5 < 1e-2 < bent


@given(st.integers(0, 10**6))
def test_a_shape_covers_its_middle_and_nothing_twice_as_far_as_its_largest_radius(seed: int) -> None:
    shape = outline(Key.of(seed).fold(torch.arange(4)), 8.0, 16.0)
    angle = torch.linspace(0, 6.28, 100)
    ring = torch.stack([angle.cos(), angle.sin()])[None, None, :, None]
    assert (shape.cover(0.5 * ring) == 1).all() and (shape.cover(33 * ring) == 0).all()
    cover = shape.cover(torch.linspace(0, 40, 161)[:, None] * ring)
    assert (cover.diff(dim=2) <= 0).all() and ((cover > 0) & (cover < 1)).any()
    assert (cover.diff(dim=3).abs() < 1).any()
    # Seen along any direction, the edge is a pixel wide: 0.25 is a quarter of it.
    torch.testing.assert_close(cover.diff(dim=2).amin(), torch.tensor(-0.25), atol=1e-3, rtol=0)
