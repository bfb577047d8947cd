"""A Gaussian that an encoder says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from hjepa.contracts import Spec
from hjepa.randomness import Key
from hjepa_latent.gaussian import Gaussian


def test_the_divergence_is_that_of_torch(make: Any, spec: Spec) -> None:
    latent, world = Gaussian(spec, width=3, weight=0.7), make(3)
    _, penalty = world.infer(latent)
    mean, spread = latent.reader(world.context, world.target).chunk(2, dim=-1)
    expected = 0.7 * kl_divergence(Normal(mean, spread.exp()), Normal(0.0, 1.0)).sum(dim=-1)
    torch.testing.assert_close(penalty, expected)


def test_in_training_it_is_drawn_and_at_rest_it_is_the_mean(make: Any, spec: Spec) -> None:
    latent, world = Gaussian(spec, width=2), make(2, batch=300)
    mean, spread = latent.reader(world.context, world.target).chunk(2, dim=-1)
    noise = ((world.infer(latent)[0] - mean) / spread.exp()).detach()
    assert noise.mean() == pytest.approx(0, abs=0.06) and noise.std() == pytest.approx(1, abs=0.06)
    assert torch.equal(world.infer(latent.eval())[0], mean)


def test_the_prior_by_hand(spec: Spec) -> None:
    latent = Gaussian(spec, width=2, weight=0.5)
    assert latent.penalty(torch.tensor([[1.0, 2.0]])).tolist() == [1.25]
    drawn = latent.sample(4000, Key.of(0))
    assert drawn.mean() == pytest.approx(0, abs=0.05) and drawn.std() == pytest.approx(1, abs=0.05)


def test_the_states_get_no_gradient_through_z(make: Any, spec: Spec) -> None:
    latent, world = Gaussian(spec), make(2)
    world.target.requires_grad_()
    z, penalty = world.infer(latent)
    (z.sum() + penalty.sum()).backward()
    assert world.target.grad is None
