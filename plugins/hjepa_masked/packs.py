"""All sets of a family of masks, packed at once."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hjepa.contracts import Packed
from hjepa.nn import grid_positions


def packs(chosen: Tensor, grid: tuple[int, ...], family: str) -> list[Packed]:
    """(S, R, N) bool -> S lots of sets, the context and then the targets, each with one set for each row.

    Its values (M, 1) are the flat indices of what is chosen, in order.
    """
    lengths, tokens = chosen.sum(dim=-1), chosen.shape[-1]
    index = chosen.flatten().nonzero()[:, 0] % tokens
    positions = torch.stack([line.index_select(0, index) for line in _places(grid, index.device)], dim=-1)
    ends = [int(count) for count in lengths.sum(dim=1)]
    parts = zip(torch.split(index[:, None], ends), lengths.unbind(), torch.split(positions, ends), strict=True)
    row = torch.arange(chosen.shape[1], device=index.device)
    return [Packed(values, length, places, row, family) for values, length, places in parts]


@cache
def _places(grid: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """(N,) for each axis: where each token lies along it."""
    return tuple(line.contiguous() for line in grid_positions(grid, device).unbind(dim=1))
