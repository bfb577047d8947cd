"""What a loss on embeddings may look through, so that not the states themselves must have the statistics that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from hjepa.distributed import sum_ranks
from hjepa.nn.statistics import at_least_float32

STABLE = 1e-5
"""Added to each variance."""


def projected(width: int, widths: Sequence[int]) -> int:
    """How wide a vector of `width` is behind the projector of these widths."""
    return widths[-1] if widths else width


def projector(width: int, widths: Sequence[int]) -> nn.Sequential:
    """A perceptron from `width` over `widths`, its hidden layers standardised; nothing at all without widths (VICReg's expander)."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((width, *widths)):
        layers += [nn.Linear(inputs, outputs), Standardised(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class Standardised(nn.Module):
    """(..., D): each dimension over all rows of all ranks, then scaled and shifted as learned (arXiv:1502.03167).

    Over rows, and not over the width: what all states have in common, much in those of pooled maps, hides what tells them apart.
    Whoever looks through a projector compares many states at once, so that nothing of earlier batches is kept.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        rows = at_least_float32(x).flatten(0, -2)
        count = sum_ranks(rows.new_full((), len(rows))).clamp(min=1)
        centred = rows - sum_ranks(rows.sum(0)) / count
        variance = sum_ranks(centred.square().sum(0)) / count
        return torch.addcmul(self.bias, centred, self.weight * (variance + STABLE).rsqrt()).view_as(x)
