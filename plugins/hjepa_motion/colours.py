"""Flow as colours: the direction is the hue, the speed is the saturation, standing still is white.

The wheel is that of Middlebury (Baker et al. 2011, "A Database and Evaluation Methodology for Optical Flow"): hues are spread so that
their steps look alike, with more of them from red to yellow than from yellow to green, and so on.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))
"""Red, yellow, green, cyan, blue, magenta."""
STEPS = (15, 6, 4, 11, 13, 6)
"""From each of them to the next."""
BEYOND = 0.75
"""How bright is what is faster than the fastest that is shown."""


@cache
def wheel() -> Tensor:
    """(55, 3): pure colours once around the circle. Red stands for the right, and it goes on clockwise as one sees it: yellow is down."""
    corners = torch.tensor([*CORNERS, CORNERS[0]], dtype=torch.float32)
    parts = [torch.lerp(corners[n], corners[n + 1], torch.arange(count)[:, None] / count) for n, count in enumerate(STEPS)]
    return torch.cat(parts)


def coloured(flow: Tensor, largest: Tensor | float) -> Tensor:
    """Flow (..., 2, H, W) -> colours (..., H, W, 3) in [0, 1]; fully saturated where it is `largest` (..., 1, 1) pixels long, darker
    beyond.
    """
    x, y = flow.float().unbind(dim=-3)
    length = ((x.square() + y.square()).sqrt() / largest)[..., None]
    place = torch.atan2(y, x) / math.tau % 1 * len(wheel())
    first = place.floor().long() % len(wheel())
    pure = torch.lerp(wheel()[first], wheel()[(first + 1) % len(wheel())], (place - place.floor())[..., None])
    return torch.where(length <= 1, 1 - length * (1 - pure), BEYOND * pure)
