"""How a dot wanders that nobody steers: it keeps about its direction, at steps of about one pixel (PLDM, arXiv:2502.14819)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hjepa.randomness import Key, uniform

MEAN, DEVIATION, SHORTEST, LONGEST = 1.0, 0.4, 0.2, 1.8
"""Of the length of a step in pixels: normal, cut off at both ends."""

NODES = 4096
"""Of the table of how far a direction turns."""


def steps(key: Key, heading: Tensor, count: int, concentration: float) -> Tensor:
    """(B, count, 2): the first goes where `heading` (B,) points, in radians; each turns away from the one before it as von Mises has it."""
    turns = von_mises(uniform(key, "turn", (count - 1,)), concentration)
    direction = torch.cat((heading[:, None], heading[:, None] + turns.cumsum(1)), dim=1)
    return lengths(uniform(key, "length", (count,)))[..., None] * torch.stack((direction.cos(), direction.sin()), dim=-1)


def lengths(share: Tensor) -> Tensor:
    """Numbers in [0, 1) -> lengths, of the truncated normal distribution that many such numbers make."""
    low, high = (torch.special.ndtr(torch.tensor((end - MEAN) / DEVIATION, dtype=torch.float64)) for end in (SHORTEST, LONGEST))
    return (MEAN + DEVIATION * torch.special.ndtri(low + (high - low) * share.double())).float()


def von_mises(share: Tensor, concentration: float) -> Tensor:
    """Numbers in [0, 1) -> angles within pi of 0; by a table of the distribution function."""
    angles, below = (one.to(share.device) for one in _table(concentration))
    after = torch.searchsorted(below, share.double().contiguous(), right=True).clamp(1, NODES)
    before = after - 1
    between = (share - below[before]) / (below[after] - below[before])
    return torch.lerp(angles[before], angles[after], between).float()


@cache
def _table(concentration: float) -> tuple[Tensor, Tensor]:
    """(NODES + 1,) angles, and how much of the distribution lies below each."""
    angles = torch.linspace(-torch.pi, torch.pi, NODES + 1, dtype=torch.float64)
    density = (concentration * (angles.cos() - 1)).exp()
    below = torch.cat((density.new_zeros(1), torch.cumulative_trapezoid(density, angles)))
    return angles, below / below[-1]
