"""The z that were inferred lately: what to draw from where no formula says how z is distributed.

A penalty R(z) is a prior only up to a temperature that nobody knows, so futures are drawn from what was inferred while training
(the aggregate posterior). It is drawn regardless of the context: where z means something else in each context, so do samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.randomness import Key, integers


class Memory(nn.Module):
    """The newest `length` z of width `width`; before the first there is 0 to draw."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(length, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.seen: Tensor
        self.filled: Tensor

    def keep(self, z: Tensor) -> None:
        """z (*shape, width). In evaluation mode nothing is kept."""
        if self.training:
            rows = z.detach().flatten(0, -2).float()
            self.seen.copy_(torch.cat((rows, self.seen))[: len(self.seen)])
            self.filled.add_(len(rows)).clamp_(max=len(self.seen))

    def draw(self, count: int, key: Key) -> Tensor:
        """(*key, count, width)."""
        return self.seen[integers(key, "memory", 0, 1 << 62, (count,)) % self.filled.clamp(min=1)]
