"""Boxes of tokens on a grid (time, height, width): drawn for all rows at once, and again where they leave too little.

R rows    K boxes of each row    N tokens of a row, time * height * width
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce

import torch
from torch import Tensor

from hjepa.randomness import Key, uniform

Range = tuple[float, float]
Grid = tuple[int, int, int]
Draw = Callable[[Key], Tensor]
"""One key a row -> (1 + K, R, N) bool: where the context of each row may lie, and then what is masked, a box each."""

TRIES = 10
"""Draws before it is decided without chance what rows do that are left with too little context."""


def space(grid: tuple[int, ...]) -> Grid:
    """time, height, width of a grid: an image is one step of time, and words are one line of it. ValueError of any other grid."""
    if not 1 <= len(grid) <= 3 or math.prod(grid) < 2:
        raise ValueError(
            f"nothing can be masked on the grid {list(grid)}: it must be (W,), (H, W) or (T, H, W), with two tokens"
        )
    time, height, width = (1, 1, *grid)[-3:]
    return time, height, width


def ordered(name: str, given: Range, high: float = math.inf) -> Range:
    """A range above 0, the smaller end first. ValueError of any other."""
    if not 0 < given[0] <= given[1] <= high:
        most = "" if math.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"{name} is {list(given)}: write the smaller end first, both above 0{most}")
    return given


@dataclass(frozen=True)
class Room:
    """Where the boxes of each row lie."""

    grid: Grid
    extent: Tensor
    """(R, 3) or (1, 3) float64: how far along each axis a row has tokens."""
    valid: Tensor | None
    """(R, N) bool: the tokens that a row has, None where it has all."""

    @staticmethod
    def of(grid: Grid, valid: Tensor | None, device: torch.device) -> Room:
        extent = torch.tensor([grid], dtype=torch.float64, device=device)
        if valid is not None:
            there = valid.view(-1, *grid)
            along = (there.any(3).any(2), there.any(3).any(1), there.any(2).any(1))
            ends = [(line * torch.arange(1, line.shape[1] + 1, device=device)).amax(1) for line in along]
            extent = torch.stack(ends, dim=1).clamp(min=1).to(extent)
        return Room(grid, extent, valid)

    def all(self, rows: int) -> Tensor:
        """(rows, N) bool: every token that a row has."""
        if self.valid is not None:
            return self.valid
        return torch.ones(1, math.prod(self.grid), dtype=torch.bool, device=self.extent.device).expand(rows, -1)

    def has(self, chosen: Tensor) -> Tensor:
        """chosen (..., R, N), without the tokens that a row does not have."""
        return chosen if self.valid is None else chosen & self.valid


@dataclass(frozen=True)
class Law:
    """How boxes are drawn: share of a step's area, height over width and share of time, independent and uniform.

    The `count` boxes of a row have one size. Their area is a whole number of tokens, at least one; where they would be too high or
    too wide for the grid they take all of its height or width and keep their area. Every place where a box fits has the same chance,
    up to the last row and column, and each box has its own.
    """

    count: int
    scale: Range
    aspect: Range = (1.0, 1.0)
    duration: Range = (1.0, 1.0)

    def largest(self, grid: Grid) -> tuple[int, int]:
        """Height and width of the box with the most tokens."""
        _, height, width = grid
        area = max(1, math.floor(height * width * self.scale[1]))
        low, high = (min(max(math.sqrt(area * aspect), area / width), height) for aspect in self.aspect)
        heights = range(max(1, round(low)), max(1, round(high)) + 1)
        found = [(tall, max(1, min(width, round(area / max(low, tall - 0.5))))) for tall in heights]
        return max(found, key=math.prod)


def boxes(key: Key, laws: Sequence[Law], room: Room) -> Tensor:
    """(K, R, N) bool: the boxes of all laws, one law after the other; one key a row (R,)."""
    of = [place for place, law in enumerate(laws) for _ in range(law.count)]
    drawn = uniform(key, "boxes", (len(laws) + len(of), 3)).double().movedim(1, 0)
    size = _sizes(drawn[: len(laws)], laws, room.extent)[of]
    start = (drawn[len(laws) :] * (room.extent - size + 1)).floor()
    return room.has(_filled(start, start + size, room.grid))


def _sizes(drawn: Tensor, laws: Sequence[Law], extent: Tensor) -> Tensor:
    """(L, R, 3) in [0, 1), of L laws -> (L, R, 3): time, height and width of the boxes of each row."""
    ends = torch.tensor([(law.scale, law.aspect, law.duration) for law in laws], dtype=drawn.dtype, device=drawn.device)
    low, high = ends[:, None].unbind(-1)
    scale, aspect, duration = (low + drawn * (high - low)).unbind(-1)
    time, height, width = extent.unbind(-1)
    area = (height * width * scale).floor().clamp(min=1)
    tall = (area * aspect).sqrt().clamp(area / width, height)
    return torch.stack(((time * duration).floor(), tall.round(), (area / tall).round()), dim=-1).clamp(min=1)


def _filled(start: Tensor, stop: Tensor, grid: Grid) -> Tensor:
    """Corners (K, R, 3) -> (K, R, N) bool. Products of numbers are several times as fast as the `and` of booleans."""
    axis, place = _lines(grid, start.device)
    inside = (place >= start.index_select(2, axis)) & (place < stop.index_select(2, axis))
    time, height, width = torch.split(inside.float(), list(grid), dim=2)
    upright = (time[..., None] * height[..., None, :]).flatten(2)
    return (upright[..., None] * width[..., None, :]).flatten(2).bool()


@cache
def _lines(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Every place along every axis: (T + H + W,) its axis, and where it is."""
    axes = torch.arange(3, device=device).repeat_interleave(torch.tensor(grid, device=device))
    return axes, torch.cat([torch.arange(length, device=device) for length in grid])


def settled(draw: Draw, key: Key, visible: Tensor, least: int) -> Tensor:
    """What `draw` gives, with the context in the place of where it may lie; it has at least `least` tokens.

    Rows that are left with less are drawn again by the next of their keys. Where that does not help, their context may lie anywhere
    in `visible` (R, N), then their last boxes fall onto the first one, and at last, of rows with few or scattered tokens, a single
    token is masked: a context is empty only where there are less than two tokens.
    """
    drawn = draw(key)
    for turn in range(1, TRIES):
        context = _context(drawn)
        poor = context.sum(dim=1) < least
        if not poor.any():
            return torch.cat((context[None], drawn[1:]))
        drawn = torch.where(poor[:, None], draw(key.fold(turn)), drawn)
    return _relaxed(drawn, visible, least)


def _context(drawn: Tensor) -> Tensor:
    """(R, N): what lies in the first box and in none of the others."""
    around, *masked = drawn.unbind()
    return around & ~reduce(operator.or_, masked)


def _relaxed(drawn: Tensor, visible: Tensor, least: int) -> Tensor:
    around, *masked = drawn.unbind()
    poor = (_context(drawn).sum(dim=1) < least)[:, None]
    around = torch.where(poor, visible, around)
    for last in range(len(masked) - 1, 0, -1):
        poor = (_context(torch.stack((around, *masked))).sum(dim=1) < least)[:, None]
        masked[last] = torch.where(poor, masked[0], masked[last])
    poor = ~_context(torch.stack((around, *masked))).any(dim=1)[:, None]
    first = visible & (visible.cumsum(dim=1) == 1)
    drawn = torch.stack((around, *(torch.where(poor, first, one) for one in masked)))
    return torch.cat((_context(drawn)[None], drawn[1:]))
