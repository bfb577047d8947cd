"""What a loss looks through: hidden layers that do not see what all states have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa_prevention.projector import Standardised, projector


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_every_dimension_has_mean_zero_and_deviation_one_over_all_rows() -> None:
    seen = Standardised(5)(3 * drawn(4, 6, 2, 5) + torch.arange(5.0)).flatten(0, 2)
    torch.testing.assert_close(seen.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0, unbiased=False), torch.ones(5), atol=1e-4, rtol=0)


def test_it_is_batch_norm_of_this_batch_alone() -> None:
    ours, x = Standardised(5), drawn(7, 5)
    theirs = nn.BatchNorm1d(5)
    with torch.no_grad():
        for one in (ours, theirs):
            one.weight.copy_(drawn(5))
            one.bias.copy_(drawn(2, 5)[1])
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.eval()(x), theirs(x))


def test_what_all_states_have_in_common_is_not_seen() -> None:
    made, states = projector(4, (8, 6)), drawn(30, 4)
    torch.testing.assert_close(made(states + 50), made(states), atol=1e-3, rtol=0)


def test_a_single_row_and_rows_that_are_all_equal_are_finite() -> None:
    made = projector(4, (8, 8, 3))
    for states in (drawn(1, 4), drawn(1, 4).expand(5, 4), drawn(0, 4)):
        assert made(states).isfinite().all()


def test_without_widths_there_is_none() -> None:
    assert len(projector(4, ())) == 0
    assert [type(layer) for layer in projector(4, (5, 3))] == [nn.Linear, Standardised, nn.ReLU, nn.Linear]
