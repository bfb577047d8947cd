"""What every latent of the family does: in training and at rest, keyed by sample, whatever it is inferred beside."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hjepa.contracts import Spec
from hjepa.randomness import Key
from hjepa_latent.continuous import Continuous
from hjepa_latent.discrete import Discrete
from hjepa_latent.gaussian import Gaussian
from hjepa_latent.noisy import Noisy
from hjepa_latent.sparse import Sparse
from hjepa_latent.vq import VQ

KINDS: dict[str, Callable[[Spec], nn.Module]] = {
    "continuous": lambda spec: Continuous(spec, ridge=0.1, restarts=2, steps=5),
    "sparse": lambda spec: Sparse(spec, width=4, restarts=2, steps=5),
    "noisy": lambda spec: Noisy(spec, steps=5),
    "discrete": lambda spec: Discrete(spec, count=3, width=2),
    "soft": lambda spec: Discrete(spec, count=3, width=2, beta=5.0),
    "vq": lambda spec: VQ(spec, count=3, width=2, hidden=8),
    "gaussian": lambda spec: Gaussian(spec, hidden=8),
}
every = pytest.mark.parametrize("name", KINDS)


def made(name: str, spec: Spec) -> Any:
    torch.manual_seed(1)
    return KINDS[name](spec)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@every
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_z_and_its_penalty_have_one_row_a_step(name: str, training: bool, gradients: bool, make: Any, spec: Spec) -> None:
    latent = made(name, spec).train(training)
    world = make(latent.width)
    with torch.set_grad_enabled(gradients):
        z, penalty = world.infer(latent)
    assert z.shape == (6, 4, latent.width) and penalty.shape == latent.penalty(z).shape == (6, 4)
    assert z.isfinite().all() and (penalty >= 0).all()
    assert gradients or not (z.requires_grad or penalty.requires_grad)


@every
def test_inference_gives_no_parameter_a_gradient(name: str, make: Any, spec: Spec) -> None:
    latent = made(name, spec)
    world = make(latent.width)
    world.infer(latent)
    assert all(parameter.grad is None for module in (latent, world.decoder) for parameter in module.parameters())


@every
def test_at_rest_nothing_changes_and_the_answer_is_the_same(name: str, make: Any, spec: Spec) -> None:
    latent = made(name, spec).eval()
    world, before = make(latent.width), state(latent)
    first, second = world.infer(latent)[0], world.infer(latent)[0]
    assert torch.equal(first, second)
    assert all(torch.equal(before[key], now) for key, now in latent.state_dict().items())


@every
@pytest.mark.parametrize("training", [True, False])
def test_a_samples_z_is_its_own(name: str, training: bool, make: Any, spec: Spec) -> None:
    """Whatever is inferred beside it."""
    latent = made(name, spec).train(training)
    world = make(latent.width)
    alone = copy.deepcopy(latent)
    torch.testing.assert_close(world.infer(latent)[0][2:3], world.of(slice(2, 3)).infer(alone)[0], atol=1e-4, rtol=1e-4)


@every
def test_samples_are_keyed(name: str, make: Any, spec: Spec) -> None:
    latent = made(name, spec)
    make(latent.width).infer(latent)
    keys = Key.of(3).fold(torch.arange(5))
    drawn = latent.sample(40, keys)
    assert drawn.shape == (5, 40, latent.width)
    assert torch.equal(latent.sample(40, Key(keys.word[1:2])), drawn[1:2])
    assert torch.equal(latent.sample(40, keys), drawn)
    assert all(len(row.detach().unique(dim=0)) > 1 for row in drawn)


@every
def test_one_sample_zeros_and_half_precision_stay_finite(name: str, make: Any, spec: Spec) -> None:
    latent = made(name, spec)
    world = make(latent.width, batch=1, steps=1)
    world.context.zero_()
    world.target.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        z, penalty = world.infer(latent)
        loss = world(z).mean() + penalty.mean()
    loss.backward()
    assert z.isfinite().all() and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in latent.parameters() if p.grad is not None)


@every
def test_with_z_the_decoder_learns_both_ways(name: str, make: Any, spec: Spec) -> None:
    """Without z the energy cannot fall below 1, which is how far both ways are from their mean."""
    latent = made(name, spec)
    world = make(latent.width, batch=32)
    optimizer = torch.optim.Adam([*latent.parameters(), *world.decoder.parameters()], lr=0.02)
    for step in range(150):
        z, penalty = world.infer(latent)
        optimizer.zero_grad()
        (world(z).mean() + penalty.mean()).backward()
        optimizer.step()
        with torch.no_grad():
            getattr(latent, "after_step", lambda step: None)(step)
    z, _ = world.infer(latent.eval())
    assert world(z).mean() < 0.4
    assert all(value.ndim == 0 and value.isfinite() for value in getattr(latent, "logs", lambda z: {})(z).values())


@pytest.mark.parametrize("kind", [VQ, Gaussian])
def test_what_reads_tokens_refuses_states_without(kind: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="z is read from tokens"):
        kind(Spec(maps=((1, 8, 8),)))
