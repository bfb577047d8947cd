"""Coarse to fine: every scale adds to the flow of the coarser one, by what it sees at its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hjepa.nn.warping import upsampled
from hjepa_motion.estimator import Enlarge, Estimator


@pytest.fixture
def estimator() -> Estimator:
    torch.manual_seed(0)
    return Estimator([4, 6, 8], width=5, radius=2, hidden=(8, 6), dropout=0.0, stride=2)


def maps(seed: int, rows: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, *size, generator=draw) for width, size in ((4, (16, 12)), (6, (8, 6)), (8, (4, 3)))]


def test_a_flow_for_every_scale_coarse_to_fine(estimator: Estimator) -> None:
    flows, full = estimator(maps(0), maps(1))
    assert full.shape == (3, 2, 32, 24)
    assert [tuple(flow.shape) for flow in flows] == [(3, 2, 4, 3), (3, 2, 8, 6), (3, 2, 16, 12)]


def test_untrained_it_says_that_hardly_anything_moves(estimator: Estimator) -> None:
    assert max(flow.abs().max() for flow in estimator(maps(0), maps(1)).scales) < 0.1


def test_a_scale_that_adds_nothing_has_the_flow_of_the_coarser_one(estimator: Estimator) -> None:
    with torch.no_grad():
        estimator.residual.weight.zero_()
        estimator.residual.bias.copy_(torch.tensor([1.0, -0.5]))
    (coarse, middle, fine), _ = estimator(maps(0), maps(1))
    assert torch.equal(coarse, coarse.new_tensor([1.0, -0.5])[:, None, None].expand_as(coarse))
    torch.testing.assert_close(middle, upsampled(coarse, (8, 6)) + coarse[:, :, :1, :1])
    torch.testing.assert_close(fine, upsampled(middle, (16, 12)) + coarse[:, :, :1, :1])


def test_the_finest_scale_can_be_gone_through_again(estimator: Estimator) -> None:
    with torch.no_grad():
        estimator.residual.weight.zero_()
        estimator.residual.bias.copy_(torch.tensor([0.5, -0.25]))
    once, more = estimator(maps(0), maps(1)), estimator(maps(0), maps(1), again=3)
    for coarser, same in zip(once.scales[:-1], more.scales[:-1]):
        assert torch.equal(coarser, same)
    added = torch.tensor([1.5, -0.75])[:, None, None]
    torch.testing.assert_close(more.scales[-1], once.scales[-1] + added)
    torch.testing.assert_close(more.frames, once.frames + 2 * added)


def test_each_scale_answers_for_what_it_adds(estimator: Estimator) -> None:
    """The flow of a finer scale has no gradient through the coarser flow, but through what is handed on."""
    flows, _ = estimator(maps(0), maps(1))
    (through,) = torch.autograd.grad(flows[-1].sum(), flows[0], allow_unused=True, retain_graph=True)
    assert through is None
    narrow = estimator.narrow[-1].weight
    (handed,) = torch.autograd.grad(flows[-1].sum(), narrow)
    assert handed.abs().max() > 0


def test_the_size_of_features_and_what_all_places_share_do_not_count(estimator: Estimator) -> None:
    one, other = maps(0), maps(1)
    with torch.no_grad():
        for narrow in estimator.narrow:
            narrow.bias.zero_()
    louder = [[3 * level + 2 for level in given] for given in (one, other)]
    for flow, same in zip(estimator(one, other).scales, estimator(*louder).scales):
        torch.testing.assert_close(flow, same, atol=1e-5, rtol=1e-4)


def test_rows_do_not_see_one_another(estimator: Estimator) -> None:
    alone = estimator([level[1:2] for level in maps(0)], [level[1:2] for level in maps(1)])
    for flow, other in zip(estimator(maps(0), maps(1)).scales, alone.scales):
        torch.testing.assert_close(flow[1:2], other, atol=1e-6, rtol=1e-5)


def test_constant_maps_maps_of_one_pixel_and_half_precision_stay_finite(estimator: Estimator) -> None:
    small = [torch.zeros(1, 4, 4, 4), torch.zeros(1, 6, 2, 2), torch.zeros(1, 8, 1, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        flows = estimator(small, small)
    flows = [*flows.scales, flows.frames]
    assert all(flow.dtype == torch.float32 and flow.isfinite().all() for flow in flows)
    sum(flow.sum() for flow in flows).backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in estimator.parameters())


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    estimator = Estimator([4, 6, 8], width=5, radius=1, hidden=(8,), dropout=0.5, stride=2)
    given = maps(0), maps(1)
    assert not torch.equal(estimator(*given).frames, estimator(*given).frames)
    estimator.eval()
    assert torch.equal(estimator(*given).frames, estimator(*given).frames)


# --- the flow of the frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_enlarging_begins_as_bilinear_interpolation_nearly(stride: int) -> None:
    torch.manual_seed(0)
    flow = torch.randn(2, 2, 5, 6)
    full = Enlarge(4, stride)(flow, torch.randn(2, 4, 5, 6))
    bilinear = upsampled(flow, (5 * stride, 6 * stride))
    assert (full - bilinear).abs().mean() < 0.1 * bilinear.abs().mean()


@given(stride=st.integers(1, 4), height=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_enlarged_flow_lies_between_that_of_the_places_around(stride: int, height: int, width: int, seed: int) -> None:
    """Whatever it learns: what moves as a whole stays whole, and nothing moves that did not."""
    torch.manual_seed(seed)
    enlarge = Enlarge(3, stride)
    nn.init.normal_(enlarge.weights.weight)
    seen, flow = torch.randn(2, 3, height, width), torch.randn(2, 2, height, width)
    constant = torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand_as(flow)
    torch.testing.assert_close(
        enlarge(constant, seen), stride * constant[:, :, :1, :1].expand(2, 2, height * stride, width * stride)
    )
    highest = F.interpolate(F.max_pool2d(flow, 3, stride=1, padding=1), scale_factor=stride)
    assert (enlarge(flow, seen) <= stride * highest + 1e-5).all()


def test_an_edge_within_a_place_can_be_drawn_by_what_is_seen_there() -> None:
    """Left halves of places take the flow of the place to the left, right halves that of the place itself."""
    enlarge = Enlarge(1, 2)
    with torch.no_grad():
        weights = torch.full((9, 2, 2), -50.0)
        weights[3, :, 0], weights[4, :, 1] = 0.0, 0.0
        enlarge.weights.weight.zero_()
        enlarge.weights.bias.copy_(weights.flatten())
    flow = torch.arange(4.0).expand(1, 2, 3, 4)
    expected = 2 * torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0]).expand(1, 2, 6, 8)
    torch.testing.assert_close(enlarge(flow, torch.zeros(1, 1, 3, 4)), expected)
