from __future__ import annotations

import torch

from hjepa.contracts import Here, Spec, States
from hjepa.randomness import Key
from hjepa_prevention.stop_gradient import StopGradient


def test_targets_are_the_states_and_receive_no_gradient_at_all() -> None:
    """P19."""
    weight = torch.ones(3, requires_grad=True)
    states = States(
        weight * torch.randn(2, 4, 1, 3),
        torch.zeros(2, 4, dtype=torch.int64),
        maps=(weight[:, None, None].expand(2, 4, 3, 5, 5),),
    )
    here = Here(lambda: states, lambda: states, lambda encoder: states, Key.of(0), Key.of(0), 0)
    targets = StopGradient(Spec(3)).targets(here)
    assert torch.equal(targets.tokens, states.tokens)
    assert not targets.tokens.requires_grad
    assert not targets.maps[0].requires_grad
    prediction = torch.zeros(2, 4, 1, 3, requires_grad=True)
    (prediction - targets.tokens).square().sum().backward()
    assert weight.grad is None
    assert prediction.grad is not None
