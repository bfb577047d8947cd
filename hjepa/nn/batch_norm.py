"""Batch normalisation over every axis but the last (Ioffe & Szegedy 2015), right for several processes and for a single row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.distributed import sum_ranks
from hjepa.nn.statistics import at_least_float32

EPSILON = 1e-5


class BatchNorm(nn.Module):
    """(..., D) -> (..., D): each dimension centred, scaled to variance 1, and then scaled and shifted by what is learned.

    While it trains, by the rows of the batch on all processes; at rest, and where there is one row alone, which has no spread, by the
    running mean of what it has seen. The first batch begins that mean; before it, also at rest by the rows at hand, so that a new
    network has the scale that it starts to train with. momentum: how much a batch after the first one counts.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """ValueError where the width is another."""
        rows = at_least_float32(x).flatten(0, -2)
        mean, variance = self._of_batch(rows) if self.training else self._known(rows)
        normed = (rows - mean) * (variance + EPSILON).rsqrt()
        return (normed * self.scale + self.shift).view_as(x).to(x.dtype)

    def _of_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(D,) each, of the rows of all processes; the running ones follow."""
        count = sum_ranks(rows.new_full((), len(rows)))
        mean = sum_ranks(rows.sum(0)) / count
        variance = sum_ranks((rows - mean).square().sum(0)) / count
        alone = count < 2
        mean, variance = torch.where(alone, self.mean, mean), torch.where(alone, self.variance, variance)
        self._follow(mean.detach(), variance.detach(), alone)
        return mean, variance

    def _known(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(D,) each, at rest."""
        if len(rows) < 2:
            return self.mean, self.variance
        new = self.seen == 0
        mean, variance = rows.mean(0), rows.var(0, correction=0)
        return torch.where(new, mean, self.mean), torch.where(new, variance, self.variance)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, alone: Tensor) -> None:
        share = torch.where(self.seen > 0, self.momentum, 1.0)
        self.mean.lerp_(mean, share)
        self.variance.lerp_(variance, share)
        self.seen.copy_(torch.where(alone, self.seen, 1.0))
