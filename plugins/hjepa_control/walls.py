"""Walls as solid boxes: which a layout has, where a straight move first meets one, and which pixels they cover.

Places are (x, y) in pixels of the picture, whose centres lie on whole numbers; x goes to the right, y down.

    B worlds    M boxes    D doors of a wall    S side of the picture
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BORDER = 5
"""The outermost pixels that are wall, counted from 1: what is inside begins half a pixel further."""

BORDERS = 4
"""How many boxes the border is made of, which come first."""

FAR = 1e4
"""Beyond everything."""

GAP = 0.3
"""What stays at least between a wall and whoever ran into it."""

STEP = 1e-3
"""What a rebound begins off the wall, so that it does not meet the wall that it comes from."""

SLACK = 1e-4
"""How deep in a wall whoever touches it may stand, by rounding, and still meets it."""


@dataclass(frozen=True)
class Wall:
    """From one border to the other, upright or level, with doors in it."""

    at: Tensor
    """(B,): x of the middle of an upright wall, y of a level one."""
    doors: Tensor
    """(B, D): the middle of each door along the wall, in rising order."""
    closed: Tensor
    """(B, D) bool."""
    upright: bool

    @classmethod
    def of(cls, at: Tensor, doors: Tensor, upright: bool) -> Wall:
        """With all its doors open."""
        return cls(at, doors, torch.zeros_like(doors, dtype=torch.bool), upright)

    def side(self, places: Tensor) -> Tensor:
        """(B, ..., 2) -> (B, ...) int64: 0 before the wall, 1 behind it."""
        at = self.at.view(-1, *[1] * (places.dim() - 2))
        return (places[..., 0 if self.upright else 1] > at).long()

    def boxes(self, thick: float, wide: float) -> Tensor:
        """(B, 2 D + 1, 4): what lies between the doors, and what closes them; a box that is not there ends before it begins."""
        ends = torch.full_like(self.at, FAR)[:, None]
        before, after = self.doors - wide / 2, self.doors + wide / 2
        begin = torch.cat((-ends, after, before), dim=1)
        end = torch.cat((before, ends, torch.where(self.closed, after, before - 1)), dim=1)
        low, high = ((self.at + side * thick / 2)[:, None].expand_as(begin) for side in (-1, 1))
        return torch.stack((low, begin, high, end) if self.upright else (begin, low, end, high), dim=-1)


def border(batch: int, size: int, device: torch.device) -> Tensor:
    """(B, 4, 4): all that lies outside of the pixels between the border's."""
    low, high = BORDER - 0.5, size - BORDER - 0.5
    boxes = [(-FAR, -FAR, low, FAR), (high, -FAR, FAR, FAR), (-FAR, -FAR, FAR, low), (-FAR, high, FAR, FAR)]
    return torch.tensor(boxes, device=device).expand(batch, -1, -1)


def first_hit(boxes: Tensor, start: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, M, 4), start and move (B, 2) -> the share (B,) of the move that is free, 1 where all is; and the axis (B,) across
    which the box is met.

    By the times at which a straight line is between the two sides of a box along each axis (Kay, Kajiya 1986). To touch is not to hit.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    start, move = start[:, None], move[:, None]
    forward = move >= 0
    near, far = torch.where(forward, low, high) - start, torch.where(forward, high, low) - start
    still, within = move == 0, (start > low) & (start < high)
    rate = torch.where(still, 1, move)  # what is not chosen must have a gradient too, for 0 times none is none
    enter = torch.where(still, torch.where(within, -torch.inf, torch.inf), near / rate)
    leave = torch.where(still, torch.where(within, torch.inf, -torch.inf), far / rate)
    (entered, axis), left = enter.max(dim=-1), leave.min(dim=-1).values
    outside = entered * move.abs().expand_as(enter).gather(-1, axis[..., None])[..., 0] >= -SLACK
    entered = torch.where((entered < left) & outside & (entered < 1), entered.clamp(min=0), 1.0)
    share, box = entered.min(dim=-1)
    return share, axis.gather(1, box[:, None])[:, 0]


def moved(boxes: Tensor, start: Tensor, move: Tensor, rebound: Tensor) -> Tensor:
    """(B, 2): where a move from start (B, 2) ends that is thrown back by `rebound` (B,) where it meets a wall.

    Straight away from the wall, by `GAP` at least, and never through another one.
    """
    share, axis = first_hit(boxes, start, move)
    away = torch.zeros_like(move).scatter(1, axis[:, None], -move.gather(1, axis[:, None]).sign())
    met = start + share[:, None] * move + STEP * away
    back = rebound.clamp(min=GAP)[:, None] * away
    room = first_hit(boxes, met, 2 * back)[0][:, None] * 2 * back
    clear = torch.minimum(back.norm(dim=1), room.norm(dim=1) / 2)[:, None]
    return torch.where((share < 1)[:, None], met + clear * away, start + move)


def cut(move: Tensor, longest: float) -> Tensor:
    """(..., 2): a move that is no longer than that."""
    return move * (longest / move.norm(dim=-1, keepdim=True).clamp(min=longest))


def covered(boxes: Tensor, places: Tensor) -> Tensor:
    """(B, N) bool: which of the places (N, 2), or (B, N, 2), lie in a box."""
    inside = (places[..., :, None, :] > boxes[:, None, :, :2]) & (places[..., :, None, :] < boxes[:, None, :, 2:])
    return inside.all(-1).any(-1)


def layout(walls: Sequence[Wall], size: int, thick: float, wide: float) -> Tensor:
    """(B, M, 4): all boxes, the border's first."""
    first = walls[0].at
    return torch.cat((border(len(first), size, first.device), *(wall.boxes(thick, wide) for wall in walls)), dim=1)
