"""Decorrelates a few dimensions at a time, other ones at every step."""

from __future__ import annotations

from torch import Tensor

from hjepa.contracts import Count, Here, NonNegative, Pair, Spec
from hjepa.distributed import gather_rows
from hjepa.randomness import integers


class Pairs:
    """weight: of the term; count: pairs of dimensions a step."""

    def __init__(self, spec: Spec, *, weight: NonNegative = 1.0, count: Count = 4) -> None:
        self.width, self.weight, self.count = spec.width, weight, count

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        rows = gather_rows(pair.embedding).float().reshape(-1, self.width)
        one, other = integers(here.step_key, "pairs", 0, self.width, (2, self.count)).to(rows.device)
        centred = rows - rows.mean(dim=0)
        return {"covariance": self.weight * (centred[:, one] * centred[:, other]).mean(dim=0).square().mean()}
