"""End-point errors, by hand and by their properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.errors import Mistake
from hjepa_motion.endpoints import Truth, distance, errors, fl, scores, truth


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at(x: float, y: float = 0.0) -> Tensor:
    return torch.tensor([x, y]).view(2, 1, 1)


@given(st.integers(0, 999), st.floats(0.1, 9))
def test_errors_are_distances(seed: int, factor: float) -> None:
    """F4: none from itself, the same after a shift of both, in proportion to both."""
    one, other, shift = gaussian(seed, 3, 2, 4, 5), gaussian(seed + 1, 3, 2, 4, 5), gaussian(seed + 2, 3, 2, 1, 1)
    assert (errors(one, one) == 0).all()
    torch.testing.assert_close(errors(one + shift, other + shift), errors(one, other))
    torch.testing.assert_close(errors(factor * one, factor * other), factor * errors(one, other))
    assert errors(at(3, 4), at(0)).item() == 5


@pytest.mark.parametrize(("wrong", "true", "counted"), [(3.1, 10, True), (2.9, 10, False), (3.1, 70, False), (5, 70, True)])
def test_fl_counts_what_is_far_off_in_pixels_and_in_percent(wrong: float, true: float, counted: bool) -> None:
    assert fl(torch.tensor([[wrong]]), at(true)).item() is counted


def test_scores_of_regions_by_hand() -> None:
    flow = torch.zeros(1, 1, 2, 1, 4)
    flow[0, 0, 0, 0] = torch.tensor([0.5, 2.0, 3.0, 6.0])
    known = torch.tensor([True, True, True, False]).view(1, 1, 1, 4)
    occluded = torch.tensor([False, True, False, True]).view(1, 1, 1, 4)
    found = scores(torch.zeros_like(flow), true := Truth(flow, known, occluded), true.regions((1, 2.5), (2,)))
    assert found == {
        "epe": pytest.approx(5.5 / 3),
        "epe_visible": 1.75,
        "epe_occluded": 2.0,
        "epe_speed_below_1": 0.5,
        "epe_speed_1_to_2p5": 2.0,
        "epe_speed_above_2p5": 3.0,
        "epe_from_occlusion_below_2": 1.75,
        "fl_all": 0.0,
    }


def test_without_occlusion_there_is_no_score_of_it() -> None:
    true = truth({"flow": gaussian(0, 2, 1, 2, 4, 4)})
    assert set(true.regions((1.0,), (2.0,))) == {"", "_speed_below_1", "_speed_above_1"} and true.known.all()
    assert set(true.regions((), (2.0,))) == {""}
    with pytest.raises(Mistake, match=r"the batch has no 'flow' to compare with.*it has frames"):
        truth({"frames": torch.zeros(1)})


@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 2))
def test_distance_to_the_next_occluded_pixel_of_the_same_frame(seed: int, samples: int, steps: int) -> None:
    occluded = gaussian(seed, samples, steps, 7, 9) > 1.3
    found = distance(occluded)
    for sample in range(samples):
        for step in range(steps):
            places, here = occluded[sample, step].nonzero().float(), found[sample, step]
            if not len(places):
                assert torch.isinf(here).all()
                continue
            grid = torch.stack(torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij"), dim=-1)
            torch.testing.assert_close(here, torch.cdist(grid.flatten(0, 1), places).amin(dim=1).view(7, 9))
