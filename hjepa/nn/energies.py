"""Energies with a latent variable: the search for the z of least energy, and free energies.

Of a level that predicts y from x with the help of z, F(x, y) = min over z of E(x, y, z) + R(z) (LeCun 2022, sections 2 and 4.4).
The gradient of F is that of E at the z that was found, as if z were a constant (envelope theorem): so z needs no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hjepa.nn.statistics import at_least_float32
from hjepa.randomness import Key, normal

Energy = Callable[[Tensor], Tensor]
"""z (*shape, width) -> (*shape): one energy a row, which no other row's z changes."""
Proximal = Callable[[Tensor, Tensor], Tensor]
"""z (*shape, width) and a step size (*shape, 1) -> argmin over u of R(u) + |u - z|^2 / (2 step size)."""

GROW, SHRINK = 1.5, 0.5
"""What becomes of the step size of a row after a step that was taken, and after one that was not."""


def free_energy(energies: Tensor, beta: float, dim: int = 0) -> Tensor:
    """-1/beta log mean exp(-beta E) over `dim`: the soft free energy at the inverse temperature `beta` > 0.

    This is the *averaged* form, for z uniform over the K entries of `dim`: it lies between the least and the mean energy, falls as
    `beta` grows, and reaches the least at infinity. The sum form is this less log(K) / beta.
    """
    least = energies.amin(dim=dim, keepdim=True)
    if math.isinf(beta):
        return least.squeeze(dim)
    share = torch.expm1(-beta * (energies - least)).mean(dim=dim)
    return least.squeeze(dim) - torch.log1p(share) / beta


def starts(count: int, shape: tuple[int, ...], width: int, key: Key) -> Tensor:
    """(count, *shape, width) to search from: zeros first, then N(0, 1), each the same whatever `count` is."""
    own = (*shape[key.word.ndim :], width)
    drawn = [normal(key.fold("restart", number), "start", own) for number in range(1, count)]
    return torch.stack([torch.zeros(*shape, width, device=key.word.device), *drawn])


def least(energy: Energy, penalty: Energy, proximal: Proximal, begin: Tensor, steps: int, rate: float) -> Tensor:
    """The z (*shape, width) of least energy + penalty that is found from any of `begin` (K, *shape, width), without gradient.

    More steps and more starts never find a worse one.
    """
    best, lowest = descended(energy, penalty, proximal, begin[0], steps, rate)
    for start in begin[1:]:
        z, total = descended(energy, penalty, proximal, start, steps, rate)
        better = total < lowest
        best, lowest = torch.where(better[..., None], z, best), torch.where(better, total, lowest)
    return best


def descended(
    energy: Energy, penalty: Energy, proximal: Proximal, start: Tensor, steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    """z after so many proximal gradient steps (ISTA: Beck, Teboulle 2009), and its energy + penalty (*shape).

    A step is taken where it lowers the total by |change|^2 / (4 rate), which every step does whose rate is below 1 over the
    curvature; elsewhere that row waits and its rate is halved. So the total never rises, whatever the curvature is.
    """
    z = start.detach()
    value, slope = _sloped(energy, z)
    total = value + penalty(z)
    rates = torch.full_like(total, rate)
    for _ in range(steps):
        tried = proximal(z - rates[..., None] * slope, rates[..., None])
        value, steep = _sloped(energy, tried)
        reached = value + penalty(tried)
        taken = reached <= total - (tried - z).square().sum(dim=-1) / (4 * rates)
        z, slope = torch.where(taken[..., None], tried, z), torch.where(taken[..., None], steep, slope)
        total, rates = torch.where(taken, reached, total), torch.where(taken, GROW * rates, SHRINK * rates)
    return z, total


def _sloped(energy: Energy, z: Tensor) -> tuple[Tensor, Tensor]:
    """The energies of z and their gradient by z, which no parameter receives; also where gradients are off."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        value = at_least_float32(energy(leaf))
        (slope,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), slope
