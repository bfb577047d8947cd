"""What a loss on embeddings may look through, so that not the states themselves must have the statistics that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def projected(width: int, widths: Sequence[int]) -> int:
    """How wide a vector of `width` is behind the projector of these widths."""
    return widths[-1] if widths else width


def projector(width: int, widths: Sequence[int]) -> nn.Sequential:
    """A perceptron from `width` over `widths`; nothing at all without widths.

    Hidden layers are normalised over the width, not over the batch as in VICReg's expander: the same for a batch of one.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((width, *widths)):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])
