"""Boxes of tokens on a grid of any number of axes are targets, all others are context (I-JEPA, V-JEPA, spans of text)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hjepa.contracts import Count, Packed, Spec
from hjepa.nn import grid_positions
from hjepa.nn.packing import packed
from hjepa.randomness import Key, uniform


class Boxes:
    """sides: of the boxes of each family, in tokens; count: how many; separate: each its own target, or all of them one."""

    def __init__(self, spec: Spec, *, sides: dict[str, tuple[Count, ...]], count: Count = 2, separate: bool = True) -> None:
        for family, side in sides.items():
            covered = f"{count} boxes of {' x '.join(map(str, side))} = {count * math.prod(side)} tokens"
            if count * math.prod(side) >= spec.tokens or len(side) != len(spec.grid):
                raise ValueError(f"{family}: {covered} could leave no context of the grid {list(spec.grid)}")
        self.grid, self.sides, self.count, self.separate = spec.grid, sides, count, separate
        self.families = tuple(sides)

    def sample(self, key: Key, valid: Tensor | None = None) -> dict[str, list[Packed]]:
        places = grid_positions(self.grid, key.word.device)
        if valid is None:
            valid = torch.ones(len(key.word), len(places), dtype=torch.bool, device=places.device)
        extent = (places * valid[..., None]).amax(dim=1) + 1
        return {family: self._drawn(key, family, places, valid, extent) for family in self.families}

    def _drawn(self, key: Key, family: str, places: Tensor, valid: Tensor, extent: Tensor) -> list[Packed]:
        side = torch.tensor(self.sides[family], device=places.device)
        start = uniform(key, family, (self.count, len(side))) * (extent - side + 1)[:, None]
        start = start.long()[:, :, None]
        inside = ((places >= start) & (places < start + side)).all(dim=-1)
        targets = inside.unbind(dim=1) if self.separate else [inside.any(dim=1)]
        return [packed(chosen, self.grid, family) for chosen in (valid & ~inside.any(dim=1), *targets)]
