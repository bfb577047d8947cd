"""What states are compared through: hidden layers that do not see what all states have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.nn.batch_norm import BatchNorm
from hjepa.nn.projector import projected, projector


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_what_all_states_have_in_common_is_not_seen() -> None:
    made, states = projector(4, (8, 6)), drawn(30, 4)
    torch.testing.assert_close(made(states + 50), made(states), atol=1e-3, rtol=0)


def test_a_single_row_and_rows_that_are_all_equal_are_finite() -> None:
    made = projector(4, (8, 8, 3))
    for states in (drawn(1, 4), drawn(1, 4).expand(5, 4)):
        assert made(states).isfinite().all()


def test_without_widths_there_is_none() -> None:
    assert len(projector(4, ())) == 0 and projected(4, ()) == 4
    assert [type(layer) for layer in projector(4, (5, 3))] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear]
    assert projected(4, (5, 3)) == 3
