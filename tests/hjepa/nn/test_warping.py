"""Flow, its sign and its scale: what is warped where, what matches where, and what is not seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.nn import warping
from hjepa.nn.warping import cost_volume, inside, occluded, reached, upsampled, warped

sides = st.integers(1, 19)
seeds = st.integers(0, 10_000)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def constant(x: float, y: float, rows: int, height: int, width: int) -> Tensor:
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(rows, 2, height, width).contiguous()


# --- warping ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(height=sides, width=sides, seed=seeds)
def test_zero_flow_is_the_identity_to_the_last_bit(height: int, width: int, seed: int) -> None:
    """F1, P18."""
    image = drawn(2, 3, height, width, seed=seed)
    assert torch.equal(warped(image, torch.zeros(2, 2, height, width)), image)


@settings(deadline=None, max_examples=30)
@given(height=sides, width=sides, x=st.integers(-20, 20), y=st.integers(-20, 20), seed=seeds)
def test_whole_flow_copies_pixels_and_the_border_goes_on(height: int, width: int, x: int, y: int, seed: int) -> None:
    """F2, P18: I(p) = J(p + f), x before y."""
    image = drawn(2, 3, height, width, seed=seed)
    rows, columns = (torch.arange(height) + y).clamp(0, height - 1), (torch.arange(width) + x).clamp(0, width - 1)
    assert torch.equal(warped(image, constant(x, y, 2, height, width)), image[:, :, rows[:, None], columns])


@settings(deadline=None, max_examples=20)
@given(height=sides, width=sides, seed=seeds)
def test_warping_is_linear_in_the_image(height: int, width: int, seed: int) -> None:
    """F3."""
    one, other = drawn(2, 2, 3, height, width, seed=seed, dtype=torch.float64)
    flow = 3 * drawn(2, 2, height, width, seed=seed + 1, dtype=torch.float64)
    torch.testing.assert_close(warped(2 * one - other, flow), 2 * warped(one, flow) - warped(other, flow))


def test_warping_agrees_with_grid_sample() -> None:
    image, flow = drawn(3, 5, 11, 7), 4 * drawn(3, 2, 11, 7, seed=1)
    rows, columns = torch.meshgrid(torch.arange(11.0), torch.arange(7.0), indexing="ij")
    at = 2 * (torch.stack((columns, rows)) + flow).movedim(1, -1) / torch.tensor([6.0, 10.0]) - 1
    expected = F.grid_sample(image, at, padding_mode="border", align_corners=True)
    torch.testing.assert_close(warped(image, flow), expected, atol=1e-4, rtol=1e-4)


def test_there_and_back_is_home_in_the_interior() -> None:
    """P18, of a smooth picture."""
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    image, flow = ((rows + 2 * columns) / 9).sin()[None, None], constant(2.25, -1.5, 1, 24, 32)
    back = warped(warped(image, flow), -flow)
    assert (back - image).abs()[..., 4:-4, 4:-4].max() < 0.05
    assert (warped(image, flow) - image).abs().max() > 0.3


def test_gradients_are_those_of_finite_differences() -> None:
    """F11, away from whole numbers, for image and flow."""
    image, whole = drawn(2, 3, 5, 4, dtype=torch.float64), torch.randint(-3, 4, (2, 2, 5, 4), generator=torch.Generator())
    flow = whole + 0.2 + 0.6 * torch.rand(2, 2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(warped, (image.requires_grad_(), flow.requires_grad_()))


def test_numbers_that_are_none_and_half_precision() -> None:
    """P18: wherever a flow points to, nothing outside is read."""
    image, flow = drawn(1, 2, 6, 6), drawn(1, 2, 6, 6)
    flow[:, :, 0] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.0])
    out = warped(image, flow)
    assert out[:, :, :, 1:].isfinite().all() and out[:, :, 0, 0].isnan().all()
    half = warped(image.bfloat16(), drawn(1, 2, 6, 6, seed=3))
    assert half.dtype == torch.float32 and half.isfinite().all()


def test_upsampled_flow_points_to_the_same_place() -> None:
    """F6: values grow with the map; a linear flow stays the linear flow of the place, half-pixel shift included."""
    flow, truth = drawn(2, 2, 5, 6), drawn(2, 2, 5, 6)
    truth = flow + constant(3.0, -4.0, 2, 5, 6)
    error = (upsampled(flow, (10, 12)) - upsampled(truth, (10, 12))).norm(dim=1)
    torch.testing.assert_close(error, torch.full_like(error, 10.0))
    columns = torch.arange(8.0).expand(1, 1, 6, 8)
    fine = upsampled(torch.cat((columns, 0 * columns), dim=1), (12, 16))
    expected = 2 * ((torch.arange(16.0) + 0.5) / 2 - 0.5)
    torch.testing.assert_close(fine[0, 0, 3, 1:-1], expected[1:-1])
    assert upsampled(flow, (10, 6))[:, 0].abs().max() <= flow[:, 0].abs().max()


# --- occlusion --------------------------------------------------------------------------------------------------------


def moving_square() -> tuple[Tensor, Tensor, Tensor]:
    """A square of 8 that moves 4 to the right over a still ground: flows both ways, and what it covers."""
    forward, backward, covered = torch.zeros(1, 2, 24, 24), torch.zeros(1, 2, 24, 24), torch.zeros(1, 24, 24, dtype=torch.bool)
    forward[:, 0, 8:16, 6:14], backward[:, 0, 8:16, 10:18] = 4.0, -4.0
    covered[:, 8:16, 14:18] = True
    return forward, backward, covered


def test_what_an_object_covers_is_occluded() -> None:
    """F7."""
    forward, backward, covered = moving_square()
    assert torch.equal(occluded(forward, backward), covered)
    assert torch.equal(reached(backward) < 0.5, covered)


@pytest.mark.parametrize(("x", "y"), [(2.0, 0.0), (-1.5, 2.25)])
def test_a_constant_flow_occludes_only_what_leaves_the_picture(x: float, y: float) -> None:
    """F7."""
    flow = constant(x, y, 2, 12, 14)
    assert torch.equal(occluded(flow, -flow), ~inside(flow))
    assert not occluded(flow, -flow)[:, 3:-3, 3:-3].any() and occluded(flow, -flow).any()
    assert torch.equal((reached(-flow) < 0.5)[:, 3:-3, 3:-3], torch.zeros(2, 6, 8, dtype=torch.bool))


def test_occlusion_is_cut_from_the_graph() -> None:
    forward, backward, _ = moving_square()
    assert not occluded(forward.requires_grad_(), backward.requires_grad_()).requires_grad
    assert not reached(backward).requires_grad


def test_every_pixel_of_the_other_map_is_counted_once() -> None:
    flow = 2 * drawn(2, 2, 16, 16)
    flow[:, :, :8], flow[:, :, 8:] = flow[:, :, :8].clamp(min=0), flow[:, :, 8:].clamp(max=0)
    flow[:, 0, :, :8], flow[:, 0, :, 8:] = flow[:, 0, :, :8].abs(), -flow[:, 0, :, 8:].abs()
    torch.testing.assert_close(reached(flow.clamp(-7, 7)).sum((1, 2)), torch.full((2,), 256.0))


# --- cost volume ------------------------------------------------------------------------------------------------------


def plain(one: Tensor, other: Tensor, radius: int) -> Tensor:
    """Displacement by displacement."""
    height, width = one.shape[2:]
    padded, reach = F.pad(other, (radius,) * 4), range(2 * radius + 1)
    parts = [(one * padded[:, :, y : y + height, x : x + width]).mean(1) for y in reach for x in reach]
    return torch.stack(parts, dim=1)


@settings(deadline=None, max_examples=25)
@given(height=sides, width=sides, radius=st.integers(0, 5), channels=st.integers(1, 5), seed=seeds)
def test_the_cost_volume_is_that_of_plain_loops(height: int, width: int, radius: int, channels: int, seed: int) -> None:
    """P17, values and gradients, any size."""
    one, other = (x.requires_grad_() for x in drawn(2, 2, channels, height, width, seed=seed, dtype=torch.float64).clone())
    found, expected = cost_volume(one, other, radius), plain(one, other, radius)
    torch.testing.assert_close(found, expected)
    weight = drawn(*found.shape, seed=seed + 1, dtype=torch.float64)
    gradients = [torch.autograd.grad((volume * weight).sum(), (one, other)) for volume in (found, expected)]
    for mine, theirs in zip(*gradients):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("workspace", [1, 300, 3000])
def test_parts_change_nothing(workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warp and a volume, whose maps lie in memory in different orders, place by place and band by band."""
    one, other = (x.requires_grad_() for x in drawn(2, 2, 4, 33, 20).clone())
    flow = drawn(2, 2, 33, 20, seed=1).requires_grad_()

    def both_ways() -> list[Tensor]:
        volume = cost_volume(warped(one, flow), other.contiguous(memory_format=torch.channels_last), 4)
        return [volume, *torch.autograd.grad(volume.square().sum(), (one, other, flow))]

    whole = both_ways()
    monkeypatch.setattr(warping, "WORKSPACE", workspace)
    for part, expected in zip(both_ways(), whole, strict=True):
        torch.testing.assert_close(part, expected)


@settings(deadline=None, max_examples=20)
@given(x=st.integers(-4, 4), y=st.integers(-4, 4), seed=seeds)
def test_the_best_match_is_the_shift(x: int, y: int, seed: int) -> None:
    """F5, P17: and warping by it brings the maps together."""
    one = drawn(1, 16, 20, 20, seed=seed)
    other = one.roll((y, x), (2, 3))
    best = cost_volume(F.normalize(one, dim=1), F.normalize(other, dim=1), 4).argmax(1)[:, 4:-4, 4:-4]
    assert (best % 9 - 4 == x).all() and (best // 9 - 4 == y).all()
    assert torch.equal(warped(other, constant(x, y, 1, 20, 20))[..., 4:-4, 4:-4], one[..., 4:-4, 4:-4])


def test_no_displacement_is_the_plain_product() -> None:
    """P17."""
    one, other = drawn(2, 1, 6, 9, 9)
    torch.testing.assert_close(cost_volume(one, other, 4)[:, 40], (one * other).mean(1))


def test_swapping_the_maps_mirrors_the_volume() -> None:
    """F10: what lies at d from p lies at -d from p + d."""
    one, other = drawn(2, 1, 6, 12, 12)
    there, back = cost_volume(one, other, 2), cost_volume(other, one, 2)
    dx, dy = 1, -2
    forth, home = there[0, (dy + 2) * 5 + dx + 2], back[0, (2 - dy) * 5 + 2 - dx]
    torch.testing.assert_close(forth[2:, :-1], home[:-2, 1:])


def test_a_cost_volume_keeps_its_precision() -> None:
    one, other = drawn(2, 1, 6, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        inner = cost_volume(one, other, 2)
    assert torch.equal(inner, cost_volume(one, other, 2))
    assert cost_volume(one.bfloat16(), other.bfloat16(), 2).dtype == torch.float32
