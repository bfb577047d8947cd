"""Random shapes with smooth outlines and soft edges, known at every point.

B samples    T frames    S side of the canvas
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa.randomness import Key, uniform

WAVES = (2, 3, 4, 5)
"""How often a part of an outline swings as one goes around."""


@dataclass(frozen=True)
class Outline:
    """How far the edge is from the centre, in every direction."""

    radius: Tensor
    """(B,): on average, in pixels."""
    swing: Tensor
    """(B, waves, 2): how much of it the cosine and the sine of each wave add."""

    def cover(self, point: Tensor) -> Tensor:
        """What share of a pixel at `point` (B,T,2,S,S) is covered: from 0 to 1 within half a pixel of the edge."""
        away = point.square().sum(dim=2).sqrt()
        x, y = (point / away.clamp(min=1e-6)[:, :, None]).unbind(dim=2)
        edge, (cosine, sine) = torch.ones_like(away), (x, y)
        for wave in range(2, max(WAVES) + 1):
            cosine, sine = cosine * x - sine * y, sine * x + cosine * y
            of_cosine, of_sine = self.swing[:, wave - 2, :, None, None, None].unbind(dim=1)
            edge = edge + of_cosine * cosine + of_sine * sine
        return (edge * self.radius[:, None, None, None] - away + 0.5).clamp(0, 1)


def outline(key: Key, low: float, high: float) -> Outline:
    """A shape of each sample, from `low` to `high` pixels from centre to edge on average; at most twice as far anywhere."""
    least = torch.tensor(WAVES, dtype=torch.float32, device=key.word.device)
    swing = (uniform(key, "swing", (len(WAVES), 2)) - 0.5) / least[:, None]
    return Outline(low + (high - low) * uniform(key, "radius"), swing)
