"""A point on a ring goes one of two ways: the smallest world whose next step has two answers.

For asking what a latent variable is worth: a prediction without one is at best the mean of both ways, which neither goes.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from hjepa.contracts import Batch, Count, NonNegative, Spec
from hjepa.nn.splits import Drawn
from hjepa.randomness import Key, integers, normal
from hjepa_data.moving_digits import direction


class Branches(Drawn):
    """Two steps: a point at a random angle, and the same point turned to the left or to the right, each in half of the cases.

    Options:
        angle: how far it turns, in degrees; up to 180, where both ways lead to the same point.
        noise: standard deviation of the normal noise added to each coordinate of the second step.
        samples: how many samples an epoch of `train` has.
        held_out: how many samples `valid` has, and `test`.

    A batch holds
        points (B,2,2): (x, y) on the unit circle, before and after.
        branch (B,) int64: 1 where it turned to the left (counter-clockwise), else 0.

    Without knowing the branch, the best guess is the first point times cos(angle): its squared error is sin(angle)^2.
    """

    def __init__(
        self,
        seed: int,
        *,
        angle: Annotated[float, Gt(0), Le(180)] = 60.0,
        noise: NonNegative = 0.0,
        samples: Count = 100_000,
        held_out: Count = 1000,
    ) -> None:
        self.seed, self.angle, self.noise = seed, angle, noise
        super().__init__(samples, held_out)
        self.streams = {"points": Spec(width=2, ticks=(0, 1))}

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        key = Key.of(self.seed, "branches", self.name, device=device).fold(ids)
        branch = integers(key, "branch", 0, 2)
        start = direction(key, "start", 1)
        across = torch.stack([-start[..., 1], start[..., 0]], dim=-1) * (2 * branch - 1)[:, None, None]
        end = math.cos(math.radians(self.angle)) * start + math.sin(math.radians(self.angle)) * across
        points = torch.cat([start, end], dim=1).float()
        if self.noise:
            points[:, 1] += self.noise * normal(key, "noise", (2,))
        return {"points": points, "branch": branch}
