"""The perceptron on windows of states: it reads all of a window and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hjepa.contracts import Spec, States
from hjepa_encoders.latent_mlp import LatentMLP

SPEC = Spec(width=5, grid=(4, 3), ticks=(3, 7, 11), actions=8, window=4)
STATES = States(
    torch.randn(2, 3, 12, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([[3, 7, 11]] * 2), grid=(4, 3)
)


@pytest.fixture
def encoder() -> LatentMLP:
    torch.manual_seed(0)
    return LatentMLP(SPEC, width=6)


def test_a_window_becomes_one_token(encoder: LatentMLP) -> None:
    assert encoder(STATES).tokens.shape == (2, 3, 1, 6)
    assert encoder.spec == Spec(width=6, ticks=(3, 7, 11), actions=8)


def test_a_step_depends_on_that_step_alone(encoder: LatentMLP) -> None:
    """P28, to the last bit."""
    changed = STATES.tokens.clone()
    changed[:, 2] = 9.0
    before, after = encoder(STATES).tokens, encoder(replace(STATES, tokens=changed)).tokens
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_every_token_of_the_window_is_read(encoder: LatentMLP) -> None:
    tokens = STATES.tokens.clone().requires_grad_()
    encoder(replace(STATES, tokens=tokens)).tokens.sum().backward()
    assert tokens.grad is not None and tokens.grad.abs().sum(-1).gt(0).all()


def test_tokens_that_are_not_valid_have_no_influence(encoder: LatentMLP) -> None:
    """P14."""
    valid = torch.rand(2, 3, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    noise = torch.where(valid[..., None], STATES.tokens, torch.inf)
    masked = encoder(replace(STATES, tokens=noise, valid=valid)).tokens
    assert torch.equal(masked, encoder(replace(STATES, valid=valid)).tokens)
    assert not torch.equal(masked, encoder(STATES).tokens)


def test_depth_and_hidden_width() -> None:
    shapes = [tuple(weight.shape) for weight in LatentMLP(SPEC, width=6, hidden=7, depth=1).parameters() if weight.ndim == 2]
    assert shapes == [(7, 60), (6, 7)]


@pytest.mark.parametrize(
    ("spec", "reader"),
    [(Spec(maps=((3, 8, 8),)), "maps only; conv"), (Spec(parts=(SPEC, SPEC)), "several streams; an encoder that fuses")],
)
def test_what_has_no_tokens_is_refused(spec: Spec, reader: str) -> None:
    with pytest.raises(ValueError, match=reader):
        LatentMLP(spec)


def test_layers_are_refused(encoder: LatentMLP) -> None:
    with pytest.raises(ValueError, match="no layer last"):
        encoder(STATES, layers=("last",))
