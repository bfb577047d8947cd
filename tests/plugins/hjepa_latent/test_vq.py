"""The nearest code to what an encoder says."""

from __future__ import annotations

from typing import Any

import torch

from hjepa.contracts import Spec
from hjepa_latent.vq import VQ


def test_the_losses_of_codes_and_encoder_by_hand(make: Any, spec: Spec) -> None:
    """van den Oord et al. 2017, equation 3: each term moves only its side."""
    latent, world = VQ(spec, count=3, width=2, commitment=0.5), make(2)
    said = latent.reader(world.context, world.target)
    z, penalty = world.infer(latent)
    distance = (said - z).square().mean(dim=-1)
    torch.testing.assert_close(penalty, 1.5 * distance)
    encoder = [*latent.reader.parameters()]
    ours = torch.autograd.grad(penalty.sum(), [latent.book.codes, *encoder])
    code = latent.book.codes[latent.book.nearest(said)]
    (of_codes,) = torch.autograd.grad((said.detach() - code).square().mean(dim=-1).sum(), latent.book.codes, retain_graph=True)
    of_encoder = torch.autograd.grad(0.5 * (said - code.detach()).square().mean(dim=-1).sum(), encoder)
    for one, other in zip(ours, (of_codes, *of_encoder), strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_passes_straight_through_to_the_encoder_alone(make: Any, spec: Spec) -> None:
    latent, world = VQ(spec, count=3, width=2), make(2)
    world.context.requires_grad_()
    z, _ = world.infer(latent)
    z.sum().backward()
    assert latent.book.codes.grad is None and world.context.grad is None
    said = latent.reader(world.context, world.target)
    expected = torch.autograd.grad(said.sum(), [*latent.reader.parameters()])
    for parameter, gradient in zip(latent.reader.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_dead_codes_come_back_where_the_encoder_is(make: Any, spec: Spec) -> None:
    latent, world = VQ(spec, count=4, width=2), make(2)
    latent.book.codes.data[2:] = 1e3
    latent.book.usage.copy_(torch.tensor([0.5, 0.5, 0.0, 0.0]))
    world.infer(latent)
    said = latent.reader(world.context, world.target).flatten(0, 1)
    before = latent.book.codes.detach().clone()
    with torch.no_grad():
        latent.after_step(7)
    assert torch.equal(latent.book.codes[:2], before[:2])
    assert all((row == said).all(dim=1).any() for row in latent.book.codes[2:])
    torch.testing.assert_close(latent.book.usage, torch.tensor([0.5, 0.5, 0.25, 0.25]) / 1.5, atol=0.02, rtol=0)
    after = latent.book.codes.detach().clone()
    latent.after_step(8)
    assert torch.equal(latent.book.codes, after), "nothing was inferred since"


def test_codes_in_use_stay(make: Any, spec: Spec) -> None:
    latent, world = VQ(spec, count=3, width=2), make(2)
    world.infer(latent)
    before = latent.book.codes.detach().clone()
    with torch.no_grad():
        latent.after_step(0)
    assert torch.equal(latent.book.codes, before)
