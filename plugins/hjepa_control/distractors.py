"""Dots that wander about and obey nobody: what moves in a picture, and matters to no plan.

They go as the dot of `trajectories` goes where nothing is in its way, at most `LONGEST` pixels a step. Inner walls do not stop
them, the border throws them back: so they are everywhere equally often, and know of no layout.

    B worlds    N distractors
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa.randomness import Key, uniform
from hjepa_control.wander import lengths, von_mises

LOW, HIGH = 7.0, 57.0
"""Between which x and y stay, in pixels: as far from the border as a dot begins."""

CONCENTRATION = 5.0
"""Of the von Mises distribution of turns, as of a walk."""


@dataclass(frozen=True)
class Distractors:
    """Where they are, and where they head for. The next step is a pure function of these and of its key."""

    places: Tensor
    """(B, N, 2)."""
    headings: Tensor
    """(B, N), in radians."""

    @classmethod
    def begun(cls, key: Key, count: int) -> Distractors:
        """So many in each world, one word of the key each, evenly spread."""
        return cls(
            LOW + (HIGH - LOW) * uniform(key, "distractors", (count, 2)),
            2 * torch.pi * uniform(key, "distractors head", (count,)),
        )

    def moved(self, key: Key) -> Distractors:
        """A step later; the key has a word for each world and step."""
        count = tuple(self.headings.shape[1:])
        if count == (0,):
            return self
        headings = self.headings + von_mises(uniform(key, "distractors turn", count), CONCENTRATION)
        away = torch.stack((headings.cos(), headings.sin()), dim=-1)
        reached = self.places + lengths(uniform(key, "distractors step", count))[..., None] * away
        places = torch.where(reached < LOW, 2 * LOW - reached, torch.where(reached > HIGH, 2 * HIGH - reached, reached))
        back = torch.where(places == reached, away, -away)
        return Distractors(places, torch.atan2(back[..., 1], back[..., 0]))

    def where(self, which: Tensor, other: Distractors) -> Distractors:
        """These in worlds of `which` (B,) bool, the others elsewhere."""
        return Distractors(
            torch.where(which[:, None, None], self.places, other.places),
            torch.where(which[:, None], self.headings, other.headings),
        )


def walked(key: Key, count: int, steps: int) -> Tensor:
    """(B, steps, N, 2): where `count` distractors are at each of so many steps."""
    now = Distractors.begun(key, count)
    places = [now.places]
    for step in range(steps - 1):
        now = now.moved(key.fold(step))
        places.append(now.places)
    return torch.stack(places, dim=1)
