"""An exact share of the places is masked, each for all of the time (VideoMAE, arXiv:2203.12602)."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import Fraction, Packed, Spec
from hjepa.randomness import Key
from hjepa_masked.boxes import Room, space
from hjepa_masked.packs import packs
from hjepa_masked.shares import drawn_share, share_of


class Tube:
    """One family, `tube`: a masked place is masked in every frame, so that no later or earlier frame gives it away.

    ratio: share of a frame's places that are masked, rounded to whole places; one is always masked, and one is always left.
    """

    families = ("tube",)

    def __init__(self, spec: Spec, *, ratio: Fraction = 0.9) -> None:
        self.flat, self.grid = spec.grid, space(spec.grid)
        _, rows, columns = self.grid
        self.ratio = share_of(ratio, rows * columns, "places of a frame")

    def sample(self, key: Key, valid: Tensor | None = None) -> dict[str, list[Packed]]:
        """`[context, target]`, which are together all tokens of a row; one key a row (R,), valid (R, N)."""
        there = Room.of(self.grid, valid, key.word.device).all(len(key.word)).view(len(key.word), self.grid[0], -1)
        masked = drawn_share(key, self.ratio, there.any(dim=1))[:, None]
        return {"tube": packs(torch.stack((there & ~masked, there & masked)).flatten(2), self.flat, "tube")}
