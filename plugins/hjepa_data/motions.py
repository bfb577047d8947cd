"""Smooth motions whose inverse is known in closed form, so that what they carry can be drawn, and followed, exactly.

A point `u` of a layer, in pixels from the layer's own centre, lies at time `t`, in frames from the middle of the clip, at

    x(u, t) = centre + t velocity + (1 + t linear) (u + t bend(u))        bend(u) = sway wave(along . u / length + phase) across

with `across` perpendicular to `along`: layers travel, turn, grow and shear, and bend in waves across one direction. A wave moves
nothing along that direction, so that `along . u` is known before `u` is: the inverse needs no iteration.

    B samples    T frames    S side of the canvas
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa.randomness import Key, uniform
from hjepa_data.moving_digits import direction


@dataclass(frozen=True)
class Motion:
    """How one layer of each sample moves. Points and places are (B,T,2,S,S), (x, y); times (T,). All here broadcasts against them."""

    centre: Tensor
    """(B,1,2,1,1): where the layer's centre lies at time 0, in pixels from the middle of the canvas."""
    velocity: Tensor
    """(B,1,2,1,1), in pixels a frame."""
    linear: Tensor
    """(B,1,2,2,1,1), a frame; the third axis is that of the result."""
    along: Tensor
    """(B,1,2,1,1), of length 1."""
    sway: Tensor
    """(B,1,1,1,1), in pixels a frame."""
    length: Tensor
    """(B,1,1,1,1), in pixels."""
    phase: Tensor
    """(B,1,1,1,1), in wave lengths."""

    def origin(self, place: Tensor, time: Tensor) -> Tensor:
        """The points that lie at these places at these times."""
        time = time[:, None, None, None]
        straight = _times(_inverse(self._matrix(time)), place - self.centre - time * self.velocity)
        return straight - time * self._bend(straight)

    def place(self, point: Tensor, time: Tensor) -> Tensor:
        """Where these points lie at these times."""
        time = time[:, None, None, None]
        return self.centre + time * self.velocity + _times(self._matrix(time), point + time * self._bend(point))

    def way(self, point: Tensor, time: Tensor) -> Tensor:
        """How far these points travel in one frame, from these times on: the difference of two places, without its rounding."""
        between, bend = 2 * time[:, None, None, None] + 1, self._bend(point)
        return self.velocity + _times(self.linear, point + between * bend) + bend

    def _matrix(self, time: Tensor) -> Tensor:
        """(B,T,2,2,1,1)."""
        return torch.eye(2, device=time.device)[:, :, None, None] + time[..., None] * self.linear

    def _bend(self, point: Tensor) -> Tensor:
        x, y = self.along[:, :, :1], self.along[:, :, 1:]
        turn = (x * point[:, :, :1] + y * point[:, :, 1:]) / self.length + self.phase
        return torch.cat([-y, x], dim=2) * self.sway * _wave(turn)


def drawn(key: Key, centre: Tensor, reach: float, travel: float, affine: float, bend: float, frames: int) -> Motion:
    """A random motion of each sample (B,) in which no point within `reach` pixels of the centre (B, 2) travels further in a frame
    than the sum of `travel`, by which the layer does as a whole, `affine`, which the matrix adds, and `bend`, which the wave does,
    all in pixels.
    """

    def one(stream: str, low: float, high: float) -> Tensor:
        return low + (high - low) * uniform(key, stream)[:, None, None, None, None]

    matrix = 2 * uniform(key, "matrix", (1, 2, 2, 1, 1)) - 1
    matrix = matrix / matrix.square().sum(dim=(2, 3), keepdim=True).sqrt().clamp(min=1e-3)
    speed = one("speed", 0, travel)
    return Motion(
        centre=centre[:, None, :, None, None],
        velocity=speed * direction(key, "way", 1).float()[..., None, None],
        linear=one("turn", 0, affine / reach)[..., None] * matrix,
        along=direction(key, "along", 1).float()[..., None, None],
        sway=one("sway", 0, bend / (1 + (frames - 1) * affine / reach)),
        length=one("length", reach / 2, 2 * reach),
        phase=one("phase", 0, 1),
    )


def _times(matrix: Tensor, point: Tensor) -> Tensor:
    """(B,T,2,2,1,1) and (B,T,2,S,S): no matrix product, whose bits could depend on the batch."""
    return matrix[:, :, :, 0] * point[:, :, :1] + matrix[:, :, :, 1] * point[:, :, 1:]


def _inverse(matrix: Tensor) -> Tensor:
    (a, b), (c, d) = (row.unbind(dim=2) for row in matrix.unbind(dim=2))
    return torch.stack([torch.stack([d, -b], dim=2), torch.stack([-c, a], dim=2)], dim=2) / (a * d - b * c)[:, :, None, None]


def _wave(turn: Tensor) -> Tensor:
    """Parabolas that join smoothly, in [-1, 1], once around for each whole `turn`: like a sine, but of the same bits everywhere."""
    around = 2 * (turn - turn.floor()) - 1
    return 4 * around * (1 - around.abs())
