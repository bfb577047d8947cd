"""A small world that needs a latent: y is one of two points, and nothing in x says which."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from hjepa.contracts import Spec
from hjepa.randomness import Key


@dataclass
class World:
    """Of B samples with T steps: x and y (B, T, N, D), and the energy of a decoder that sees x and z."""

    context: Tensor
    target: Tensor
    decoder: nn.Module
    key: Key

    def __call__(self, z: Tensor) -> Tensor:
        x = self.context.flatten(-2)
        predicted = self.decoder(torch.cat((x, z.to(x.dtype)), dim=-1))
        return (predicted - self.target.flatten(-2)).square().mean(dim=-1)

    def of(self, rows: slice) -> World:
        return World(self.context[rows], self.target[rows], self.decoder, Key(self.key.word[rows]))

    def infer(self, latent: nn.Module) -> tuple[Tensor, Tensor]:
        return latent.infer(self, self.context, self.target, self.key)


SPEC = Spec(width=3, grid=(2,), ticks=tuple(range(5)))


def world(width: int, batch: int = 6, steps: int = 4, seed: int = 0) -> World:
    draw = torch.Generator().manual_seed(seed)
    context = torch.randn(batch, steps, 2, 3, generator=draw)
    side = 2.0 * torch.randint(0, 2, (batch, steps, 1, 1), generator=draw) - 1
    torch.manual_seed(seed)
    decoder = nn.Sequential(nn.Linear(6 + width, 16), nn.Tanh(), nn.Linear(16, 6))
    return World(context, 0.5 * context + side, decoder, Key.of(seed, "world").fold(torch.arange(batch)))


@pytest.fixture
def make():
    return world


@pytest.fixture
def spec() -> Spec:
    return SPEC
