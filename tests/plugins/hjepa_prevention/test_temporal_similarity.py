from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Here, Pair, Spec, States
from hjepa.randomness import Key
from hjepa_prevention.temporal_similarity import TemporalSimilarity


def change(tokens: Tensor, **options: object) -> Tensor:
    states = States(tokens, torch.zeros(tokens.shape[:2], dtype=torch.int64))
    here = Here(lambda: states, lambda: states, lambda encoder: None, Key.of(0), Key.of(0, 1), 1)
    return TemporalSimilarity(Spec(tokens.shape[-1]), **options).terms(Pair(tokens, tokens, tokens), here)["change"]


def test_three_steps_by_hand() -> None:
    """Changes (1, 1) and (-2, 0): (1 + 1 + 4 + 0) / 4."""
    tokens = torch.tensor([[0.0, 0], [1, 1], [-1, 1]]).view(1, 3, 1, 2)
    assert change(tokens).item() == pytest.approx(1.5)
    assert change(tokens, weight=2.0).item() == pytest.approx(3)
    assert change(10 * tokens).item() == pytest.approx(150)


def test_it_is_smallest_where_everything_has_collapsed() -> None:
    """And where each sample stands still, which is no collapse."""
    assert change(torch.full((3, 4, 2, 5), 7.0)).item() == 0
    assert change(torch.randn(3, 1, 2, 5).expand(3, 4, 2, 5)).item() == 0


def test_one_step_does_not_change() -> None:
    assert change(torch.randn(3, 1, 2, 5)).item() == 0


def test_its_gradient_draws_states_together() -> None:
    z = torch.randn(3, 4, 2, 5, requires_grad=True)
    before = change(z)
    (gradient,) = torch.autograd.grad(before, z)
    assert change(z - gradient) < before
