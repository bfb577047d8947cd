"""A few codes, all of them tried."""

from __future__ import annotations

from typing import Any

import torch

from hjepa.contracts import Spec
from hjepa.nn.energies import free_energy
from hjepa_latent.discrete import Discrete


def tried(latent: Discrete, world: Any) -> torch.Tensor:
    return torch.stack([world(code.expand(6, 4, -1)) for code in latent.book.codes])


def test_the_code_of_least_energy_of_each_step(make: Any, spec: Spec) -> None:
    latent, world = Discrete(spec, count=5, width=2), make(2)
    z, penalty = world.infer(latent)
    assert torch.equal(z, latent.book.codes[tried(latent, world).argmin(dim=0)])
    assert len(latent.book.nearest(z).unique()) > 1 and not penalty.any()


def test_codes_learn_from_the_steps_that_chose_them(make: Any, spec: Spec) -> None:
    latent, world = Discrete(spec, count=5, width=2), make(2)
    z, _ = world.infer(latent)
    world(z).sum().backward()
    chosen = set(latent.book.nearest(z).unique().tolist())
    moved = latent.book.codes.grad.abs().sum(dim=1) > 0
    assert {code for code in range(5) if moved[code]} == chosen


def test_the_soft_free_energy_is_what_is_trained(make: Any, spec: Spec) -> None:
    """Energy and penalty together have its value and its gradient; every code learns."""
    latent, world = Discrete(spec, count=4, width=2, beta=3.0), make(2)
    z, penalty = world.infer(latent)
    loss, soft = (world(z) + penalty).sum(), free_energy(tried(latent, world), 3.0).sum()
    torch.testing.assert_close(loss, soft)
    parameters = [latent.book.codes, *world.decoder.parameters()]
    for one, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(soft, parameters), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not latent.penalty(z).any()
