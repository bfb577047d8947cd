"""Sine-cosine tables and rotary embedding: what they promise of norms, distances and the origin."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.nn import grid_positions, rotate, rotation, sincos

SEEDS = st.integers(0, 2**32)
AXES = st.integers(1, 3)
WIDTHS = st.sampled_from([2, 6, 12, 16])


def _drawn(seed: int, axes: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors (2, 5, width), positions and other positions (5, axes)."""
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(2, 5, width, generator=draw, dtype=torch.float32)
    return vectors, *torch.randint(0, 50, (2, 5, axes), generator=draw)


def test_grid_positions_run_over_the_last_axis_first() -> None:
    assert grid_positions((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid_positions((3,)).tolist() == [[0], [1], [2]]
    assert grid_positions(()).shape == (1, 0)


@settings(deadline=None)
@given(SEEDS, AXES, WIDTHS)
def test_rotation_keeps_norms(seed: int, axes: int, width: int) -> None:
    (x, _), at, _ = _drawn(seed, axes, width)
    torch.testing.assert_close(rotate(x, rotation(at, width)).norm(dim=-1), x.norm(dim=-1))


@settings(deadline=None)
@given(SEEDS, AXES, WIDTHS)
def test_products_depend_on_the_distance_alone(seed: int, axes: int, width: int) -> None:
    (query, key), at, other = _drawn(seed, axes, width)

    def product(shift: int) -> Tensor:
        turned = rotate(query, rotation(at + shift, width)) * rotate(key, rotation(other + shift, width))
        return turned.sum(-1)

    torch.testing.assert_close(product(0), product(7), atol=1e-4, rtol=1e-4)


@settings(deadline=None)
@given(SEEDS, AXES, WIDTHS)
def test_rotations_add_up(seed: int, axes: int, width: int) -> None:
    (x, _), at, other = _drawn(seed, axes, width)
    twice = rotate(rotate(x, rotation(at, width)), rotation(other, width))
    torch.testing.assert_close(twice, rotate(x, rotation(at + other, width)), atol=1e-4, rtol=1e-4)


@settings(deadline=None)
@given(SEEDS, AXES, WIDTHS)
def test_the_origin_turns_nothing(seed: int, axes: int, width: int) -> None:
    (x, _), at, _ = _drawn(seed, axes, width)
    assert torch.equal(rotate(x, rotation(torch.zeros_like(at), width)), x)


def test_a_pair_turns_by_its_own_frequency() -> None:
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    turned = rotate(x, rotation(torch.tensor([[3]]), 4))
    torch.testing.assert_close(turned, torch.tensor([[math.cos(3), math.sin(3), math.cos(0.03), math.sin(0.03)]]))


def test_every_axis_turns_something() -> None:
    x = torch.ones(1, 12)
    for axis in range(3):
        moved = rotate(x, rotation(torch.eye(3, dtype=torch.int64)[axis][None], 12))
        assert (moved - x).abs().gt(1e-6).sum() == 4


def test_the_way_back_turns_back() -> None:
    """The gradient is the turn in the other direction, of tokens that lie in memory like a part of a projection too."""
    projected = torch.randn(5, 3 * 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    at, weight = torch.arange(5)[:, None], torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    (rotate(projected[:, 8:16], rotation(at, 8)) * weight).sum().backward()
    torch.testing.assert_close(projected.grad[:, 8:16], rotate(weight, rotation(-at, 8)))
    assert not projected.grad[:, :8].any() and not projected.grad[:, 16:].any()


def test_rotation_keeps_bfloat16() -> None:
    assert rotate(torch.ones(1, 4, dtype=torch.bfloat16), rotation(torch.tensor([[1]]), 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("grid", [(64,), (8, 8), (4, 4, 4)])
@pytest.mark.parametrize("width", [16, 32])
def test_sincos_tells_places_apart_and_all_are_as_long(grid: tuple[int, ...], width: int) -> None:
    table = sincos(grid_positions(grid), width)
    assert table.shape == (64, width)
    torch.testing.assert_close(table.square().sum(-1), torch.full((64,), width / 2))
    assert (torch.cdist(table, table) + torch.eye(64)).min() > 0.1


def test_sincos_of_one_axis() -> None:
    expected = [math.sin(5), math.sin(0.05), math.cos(5), math.cos(0.05)]
    torch.testing.assert_close(sincos(torch.tensor([[5]]), 4), torch.tensor([expected]))


def test_sincos_of_a_single_token() -> None:
    assert sincos(grid_positions(()), 8).shape == (1, 8)


@pytest.mark.parametrize("table", [sincos, rotation])
def test_an_odd_width_is_refused(table: object) -> None:
    with pytest.raises(ValueError, match="even width, got 7"):
        table(torch.tensor([[1]]), 7)  # type: ignore[operator]
