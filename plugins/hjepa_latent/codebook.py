"""A few learned codes, and how often each was chosen lately."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa.distributed import sum_ranks
from hjepa.randomness import Key, uniform

KEPT = 0.99
"""How much of `usage` stays at a step of training."""


class Codebook(nn.Module):
    """`codes` (count, width), at first from N(0, 1), and `usage` (count,), shares that sum to 1."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(nn.init.normal_(torch.empty(count, width)))
        self.register_buffer("usage", torch.full((count,), 1 / count))
        self.usage: Tensor
        self._noted: list[Tensor] = []

    def nearest(self, z: Tensor) -> Tensor:
        """(*shape, width) -> (*shape) int64: the code nearest to each."""
        return torch.cdist(z.detach().flatten(0, -2), self.codes.detach()).argmin(dim=-1).view(z.shape[:-1])

    def note(self, index: Tensor) -> None:
        """Codes (*shape) that were chosen. In evaluation mode nothing is noted."""
        if self.training:
            self._noted.append(self.counts(index))

    def after_step(self, step: int) -> None:
        """`usage` follows what was chosen since the last step; whoever needs it earlier may ask for it himself."""
        if self._noted:
            counts = sum_ranks(torch.stack(self._noted).sum(0))
            self.usage.mul_(KEPT).add_(counts / counts.sum(), alpha=1 - KEPT)
            self._noted = []

    def counts(self, index: Tensor) -> Tensor:
        """(count,): how often each was chosen."""
        return F.one_hot(index.flatten(), len(self.codes)).sum(dim=0).float()

    def draw(self, count: int, key: Key) -> Tensor:
        """(*key, count, width): codes as often as they were chosen lately."""
        index = torch.searchsorted(self.usage.cumsum(dim=0), uniform(key, "code", (count,)), right=True)
        return self.codes[index.clamp(max=len(self.codes) - 1)]

    def logs(self, z: Tensor) -> dict[str, Tensor]:
        """Of codes z (*shape, width): how many of them were `used`, and their `perplexity`, exp(entropy), from 1 to `count`."""
        counts = self.counts(self.nearest(z))
        share = counts / counts.sum()
        return {"used": (counts > 0).float().sum(), "perplexity": torch.special.entr(share).sum().exp()}
