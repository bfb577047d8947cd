"""A control: another source, but every sample looks the same. What is learned from it was never in the data."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hjepa.contracts import Batch, Build, Dataset

GREY = 0.5


class Constant:
    """The samples of another source, grey all over: whatever a level reads is the same number everywhere.

    Options:
        of: the source. What it knows of its samples (labels, positions) stays true of what can no longer be seen.
    """

    def __init__(self, seed: int, *, of: Build[Dataset]) -> None:
        self.of = of(seed)
        self.streams = self.of.streams

    def split(self, name: str) -> Constant:
        other = copy.copy(self)
        other.of = self.of.split(name)
        return other

    def __len__(self) -> int:
        return len(self.of)

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        batch = self.of.batch(ids, device)
        return batch | {name: torch.full_like(batch[name], GREY) for name in self.streams}
