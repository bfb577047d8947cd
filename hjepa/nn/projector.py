"""What states are compared through, so that not they themselves must have what is asked for: projectors, expanders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from hjepa.nn.batch_norm import BatchNorm


def projected(width: int, widths: Sequence[int]) -> int:
    """How wide a vector of `width` is behind the projector of these widths."""
    return widths[-1] if widths else width


def projector(width: int, widths: Sequence[int]) -> nn.Sequential:
    """A perceptron from `width` over `widths`, with batch normalisation (VICReg's expander); nothing at all without widths.

    Over the batch, and not over the width: what all states have in common, much in those of pooled maps, would hide what tells
    them apart.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((width, *widths)):
        layers += [nn.Linear(inputs, outputs), BatchNorm(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])
