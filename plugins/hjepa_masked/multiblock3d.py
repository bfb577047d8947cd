"""Blocks that span a clip's time are masked together, and told from the rest (V-JEPA, arXiv:2404.08471, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import Count, Fraction, Packed, Spec, Whole
from hjepa.randomness import Key
from hjepa_masked.boxes import Law, Range, Room, boxes, ordered, settled, space
from hjepa_masked.packs import packs


class Multiblock3d:
    """Two families of masks, each with its own context: what any block of a family covers is its target, all else its context.

    short, long: how many blocks, and the share of each frame that one of them covers; a family of 0 blocks is left out.
    aspect: height over width of a block, smallest and largest. temporal_scale: share of the time that a block lasts, smallest
    and largest. max_temporal_keep: share of the time that contexts see from its start; what comes later joins the target.
    min_keep: tokens that a context has at least; where draws leave less, the last blocks are left out.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        short: tuple[Whole, Fraction] = (8, 0.15),
        long: tuple[Whole, Fraction] = (2, 0.7),
        aspect: Range = (0.75, 1.5),
        temporal_scale: Range = (1.0, 1.0),
        max_temporal_keep: Fraction = 1.0,
        min_keep: Count = 1,
    ) -> None:
        self.flat, self.grid, self.least = spec.grid, space(spec.grid), min_keep
        self.seen = max(1, int(self.grid[0] * max_temporal_keep))
        asked = {family: given for family, given in (("short", short), ("long", long)) if given[0]}
        if not asked:
            raise ValueError("short and long both have 0 blocks, so nothing would be masked")
        forms = ordered("aspect", aspect), ordered("temporal_scale", temporal_scale, 1)
        self.laws = {name: Law(count, ordered(name, (share, share), 1), *forms) for name, (count, share) in asked.items()}
        self.families = tuple(self.laws)
        for family in self.families:
            self._refuse(family)

    def _refuse(self, family: str) -> None:
        """ValueError where a single block could leave a context of less than `min_keep`."""
        _, rows, columns = self.grid
        tall, wide = self.laws[family].largest(self.grid)
        left = (rows * columns - tall * wide) * self.seen
        if left < self.least:
            tokens = f"({rows} x {columns} - {tall} x {wide}) x {self.seen} steps = {left} tokens"
            raise ValueError(
                f"{family}: one block can leave {tokens} of context, and min_keep is {self.least}; lower its share"
            )

    def sample(self, key: Key, valid: Tensor | None = None) -> dict[str, list[Packed]]:
        """`[context, target]` of each family, which are together all tokens of a row; one key a row (R,), valid (R, N)."""
        room = Room.of(self.grid, valid, key.word.device)
        there = room.all(len(key.word))
        visible = there & (torch.arange(there.shape[1], device=there.device) < self.seen * self.grid[1] * self.grid[2])
        return {family: self._drawn(family, key, room, there, visible) for family in self.families}

    def _drawn(self, family: str, key: Key, room: Room, there: Tensor, visible: Tensor) -> list[Packed]:
        def draw(key: Key) -> Tensor:
            return torch.cat((visible[None], boxes(key, [self.laws[family]], room)))

        context = settled(draw, key.fold(family), visible, self.least)[0]
        return packs(torch.stack((context, there & ~context)), self.flat, family)
