"""What a flow must explain: 0 where pictures agree, blind to what shall not count, and smooth where nothing says otherwise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa_motion.losses import PHOTOMETRIC, census, l1, l2, masked_mean, smoothness, ssim


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_equal_pictures_do_not_differ_and_others_do(name: str) -> None:
    one, other = drawn(2, 3, 9, 8), drawn(2, 3, 9, 8, seed=1)
    same, different = (PHOTOMETRIC[name](one, second) for second in (one, other))
    assert same.shape == (2, 9, 8)
    assert (different.mean((1, 2)) > same.mean((1, 2)) + 0.05).all()
    assert same.max() <= (0.01**0.4 if name == "census" else 1e-6) + 1e-6
    torch.testing.assert_close(PHOTOMETRIC[name](other, one), different)


def test_plain_differences() -> None:
    one, other = drawn(1, 2, 3, 3), drawn(1, 2, 3, 3, seed=1)
    torch.testing.assert_close(l1(one, other), (one - other).abs().mean(1))
    torch.testing.assert_close(l2(one, other), (one - other).square().mean(1))


def test_census_is_blind_to_brightness_and_l1_is_not() -> None:
    """F8."""
    one, other = drawn(2, 1, 12, 12), drawn(2, 1, 12, 12, seed=1)
    torch.testing.assert_close(census(one + 0.2, other), census(one, other), atol=1e-4, rtol=1e-4)
    assert (l1(one + 0.2, one) > 0.19).all() and census(one + 0.2, one).max() < 0.01**0.4 + 1e-3


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.floats(0, 1))
def test_ssim_lies_between_0_and_1(seed: int, scale: float) -> None:
    one, other = drawn(2, 1, 2, 7, 5, seed=seed)
    found = ssim(scale * one, other)
    assert (found >= 0).all() and (found <= 1).all()
    assert ssim(one, 1 - one).mean() > 0.5


def test_ssim_is_that_of_its_formula() -> None:
    one, other = drawn(2, 1, 1, 3, 3).double()
    mean, mean_other = one.mean(), other.mean()
    covariance = (one * other).mean() - mean * mean_other
    scale = (mean**2 + mean_other**2 + 1e-4) * (one.var(correction=0) + other.var(correction=0) + 9e-4)
    expected = (2 * mean * mean_other + 1e-4) * (2 * covariance + 9e-4) / scale
    torch.testing.assert_close(ssim(one, other)[0, 1, 1], (1 - expected) / 2)


def test_which_flows_are_smooth() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    constant, affine, bent = torch.full((1, 2, 8, 9), 3.0), torch.stack((rows + 2 * columns, columns))[None], drawn(1, 2, 8, 9)
    flat = torch.zeros(1, 1, 8, 9)
    sizes = {order: [float(smoothness(flow, flat, order, 10.0)) for flow in (constant, affine, bent)] for order in (0, 1, 2)}
    assert sizes[0][0] == 3.0
    assert sizes[1][0] == 0 and sizes[1][1] == pytest.approx((1.5 + 0.5) / 2) and sizes[1][2] > 0.1
    assert sizes[2][:2] == [0, 0] and sizes[2][2] > 0.1


@pytest.mark.parametrize("order", [1, 2])
def test_flow_may_break_where_frames_have_edges(order: int) -> None:
    flow, image = torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8)
    flow[..., 4:] = 2.0
    apart = image.clone()
    apart[..., 4:] = 1.0
    plain, weighed = (float(smoothness(flow, picture, order, 10.0)) for picture in (image, apart))
    assert 0 < weighed < (0.01 if order == 1 else 0.1) * plain
    assert float(smoothness(flow, apart, order, 0.0)) == pytest.approx(plain)


def test_maps_too_small_to_have_neighbours_are_smooth() -> None:
    for order in (1, 2):
        assert smoothness(drawn(2, 2, 1, 1), drawn(2, 1, 1, 1), order, 1.0).tolist() == [0, 0]


def test_only_what_is_seen_counts_each_row_for_itself() -> None:
    values, seen = drawn(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool)
    seen[0, 1, 2] = seen[0, 0, 0] = True
    expected = torch.stack(((values[0, 1, 2] + values[0, 0, 0]) / 2, torch.zeros(())))
    torch.testing.assert_close(masked_mean(values, seen), expected)


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_gradients_are_finite_where_pictures_agree_or_are_black(name: str) -> None:
    for image in (drawn(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)):
        one = image.clone().requires_grad_()
        PHOTOMETRIC[name](one, image).sum().backward()
        assert one.grad.isfinite().all()
