"""An exact share of what each row has, drawn for all rows at once."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.randomness import Key, uniform


def share_of(ratio: float, count: int, of: str) -> float:
    """The ratio. ValueError where so much of `count` would be none, or all."""
    if not 0 < round(ratio * count) < count:
        raise ValueError(f"ratio {ratio:g} of {count} {of} is {round(ratio * count)}: some must be masked, and some be left")
    return ratio


def drawn_share(key: Key, ratio: float, there: Tensor) -> Tensor:
    """(R, N) bool of `there` (R, N): so much of each row, rounded, but at least one and not all; one key a row (R,)."""
    count = there.sum(dim=1)
    wanted = (ratio * count.double()).round().clamp(min=1).minimum(count - 1)
    order = uniform(key, "order", (there.shape[1],)).masked_fill(~there, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return rank < wanted[:, None]
