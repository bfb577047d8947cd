"""A channel of limited capacity."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hjepa.contracts import Spec
from hjepa_latent.noisy import Noisy


def test_the_signal_keeps_to_the_ball(make: Any, spec: Spec) -> None:
    """P16."""
    latent = Noisy(spec, bound=0.1, restarts=3).eval()
    z, penalty = make(2).infer(latent)
    assert z.norm(dim=-1).max() <= 0.1 * (1 + 1e-6) and z.norm(dim=-1).max() > 0.09
    assert not penalty.any()


def test_noise_is_added_in_training_alone(make: Any, spec: Spec) -> None:
    latent, world = Noisy(spec, noise=0.5), make(2, batch=200)
    noisy, again = world.infer(latent)[0], world.infer(latent)[0]
    signal = world.infer(latent.eval())[0]
    assert torch.equal(noisy, again), "keyed"
    assert (noisy - signal).std() == pytest.approx(0.5, abs=0.05)
    assert (noisy - signal).mean() == pytest.approx(0, abs=0.05)


def test_signals_are_remembered_without_noise(make: Any, spec: Spec) -> None:
    latent, world = Noisy(spec, noise=9.0, memory=8), make(2)
    world.infer(latent)
    assert latent.memory.seen.norm(dim=-1).max() <= 1 + 1e-6
