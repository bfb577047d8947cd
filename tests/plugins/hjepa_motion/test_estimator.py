"""Coarse to fine: every scale adds to the flow of the coarser one, by what it sees at its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hjepa.nn.warping import upsampled
from hjepa_motion.estimator import Estimator


@pytest.fixture
def estimator() -> Estimator:
    torch.manual_seed(0)
    return Estimator([4, 6, 8], width=5, radius=2, hidden=(8, 6), dropout=0.0)


def maps(seed: int, rows: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, *size, generator=draw) for width, size in ((4, (16, 12)), (6, (8, 6)), (8, (4, 3)))]


def test_a_flow_for_every_scale_coarse_to_fine(estimator: Estimator) -> None:
    flows = estimator(maps(0), maps(1))
    assert [tuple(flow.shape) for flow in flows] == [(3, 2, 4, 3), (3, 2, 8, 6), (3, 2, 16, 12)]


def test_untrained_it_says_that_hardly_anything_moves(estimator: Estimator) -> None:
    assert max(flow.abs().max() for flow in estimator(maps(0), maps(1))) < 0.1


def test_a_scale_that_adds_nothing_has_the_flow_of_the_coarser_one(estimator: Estimator) -> None:
    with torch.no_grad():
        estimator.residual.weight.zero_()
        estimator.residual.bias.copy_(torch.tensor([1.0, -0.5]))
    coarse, middle, fine = estimator(maps(0), maps(1))
    assert torch.equal(coarse, coarse.new_tensor([1.0, -0.5])[:, None, None].expand_as(coarse))
    torch.testing.assert_close(middle, upsampled(coarse, (8, 6)) + coarse[:, :, :1, :1])
    torch.testing.assert_close(fine, upsampled(middle, (16, 12)) + coarse[:, :, :1, :1])


def test_each_scale_answers_for_what_it_adds(estimator: Estimator) -> None:
    """The flow of a finer scale has no gradient through the coarser flow, but through what is handed on."""
    flows = estimator(maps(0), maps(1))
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
    for flow, same in zip(estimator(one, other), estimator(*louder)):
        torch.testing.assert_close(flow, same, atol=1e-5, rtol=1e-4)


def test_rows_do_not_see_one_another(estimator: Estimator) -> None:
    alone = estimator([level[1:2] for level in maps(0)], [level[1:2] for level in maps(1)])
    for flow, other in zip(estimator(maps(0), maps(1)), alone):
        torch.testing.assert_close(flow[1:2], other, atol=1e-6, rtol=1e-5)


def test_constant_maps_maps_of_one_pixel_and_half_precision_stay_finite(estimator: Estimator) -> None:
    small = [torch.zeros(1, 4, 4, 4), torch.zeros(1, 6, 2, 2), torch.zeros(1, 8, 1, 1)]
    with torch.autocast("cpu", torch.bfloat16):
        flows = estimator(small, small)
    assert all(flow.dtype == torch.float32 and flow.isfinite().all() for flow in flows)
    sum(flow.sum() for flow in flows).backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in estimator.parameters())


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    estimator = Estimator([4, 6, 8], width=5, radius=1, hidden=(8,), dropout=0.5)
    given = maps(0), maps(1)
    assert not torch.equal(estimator(*given)[-1], estimator(*given)[-1])
    estimator.eval()
    assert torch.equal(estimator(*given)[-1], estimator(*given)[-1])
