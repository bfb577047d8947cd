"""What comes later in time is told from what comes before it, as in action anticipation and in V-JEPA 2 (arXiv:2506.09985)."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import Packed, Spec
from hjepa.randomness import Key, uniform
from hjepa_masked.boxes import Range, ordered
from hjepa_masked.packs import packs


class Causal:
    """One family, `future`: the first steps of the grid's first axis are the context, all later ones the target.

    seen: share of the steps that are context, smallest and largest, rounded to whole steps; the first step always is, and the
    last one never.
    """

    families = ("future",)

    def __init__(self, spec: Spec, *, seen: Range = (0.5, 0.5)) -> None:
        if len(spec.grid) < 1 or spec.grid[0] < 2:
            raise ValueError(f"the grid {list(spec.grid)} has no time: its first axis must have two steps at least")
        self.grid, self.tokens, self.seen = spec.grid, spec.tokens, ordered("seen", seen, 1)

    def sample(self, key: Key, valid: Tensor | None = None) -> dict[str, list[Packed]]:
        """`[context, target]`, which are together all tokens of a row; one key a row (R,), valid (R, N)."""
        there = valid
        if there is None:
            there = torch.ones(len(key.word), self.tokens, dtype=torch.bool, device=key.word.device)
        by_step = there.view(len(there), self.grid[0], -1)
        number = by_step.any(dim=2).cumsum(dim=1)  # of the steps that a row has
        share = self.seen[0] + uniform(key, "seen").double() * (self.seen[1] - self.seen[0])
        count = (share * number[:, -1]).round().clamp(min=1).minimum(number[:, -1] - 1)
        early = (number <= count[:, None])[..., None]
        return {"future": packs(torch.stack((by_step & early, by_step & ~early)).flatten(2), self.grid, "future")}
