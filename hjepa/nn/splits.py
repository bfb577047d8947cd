"""The three splits that every source has."""

from __future__ import annotations

import copy
from typing import Self

from hjepa.errors import Mistake, listed, nearest

SPLITS = ("train", "valid", "test")


class Splits:
    """A source that is one of the splits, and gives the others as copies of itself that differ in their name alone."""

    name = "train"

    def split(self, name: str) -> Self:
        """Mistake where there is none of that name."""
        if name not in SPLITS:
            raise Mistake(f"there is no split {name!r} among {listed(SPLITS)}{nearest(name, SPLITS)}")
        other = copy.copy(self)
        other.name = name
        return other


class Drawn(Splits):
    """One whose samples are drawn, so that there are as many as are asked for: `samples` to train on, `held_out` in the others each."""

    def __init__(self, samples: int, held_out: int) -> None:
        self.lengths = {"train": samples, "valid": held_out, "test": held_out}

    def __len__(self) -> int:
        return self.lengths[self.name]
