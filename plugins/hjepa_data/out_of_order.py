"""A control: another source with its steps out of order. What is still learned from it is not about time."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hjepa.contracts import Batch, Build, Dataset
from hjepa.randomness import Key, uniform


class OutOfOrder:
    """The samples of another source, the steps of each in an order of its own that says nothing; all else stays as it is.

    Options:
        of: the source. What it says of each step, or of the actions between them, stays true of the steps in their old order.

    The order is a pure function of the seed, the split and the id.
    """

    def __init__(self, seed: int, *, of: Build[Dataset]) -> None:
        self.of = of(seed)
        self.streams = self.of.streams
        self.seed, self.key = seed, Key.of(seed, "out_of_order", "train")

    def split(self, name: str) -> OutOfOrder:
        other = copy.copy(self)
        other.of = self.of.split(name)
        other.key = Key.of(self.seed, "out_of_order", name)
        return other

    def __len__(self) -> int:
        return len(self.of)

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        batch = self.of.batch(ids, device)
        key = self.key.on(device).fold(ids.to(device))
        row = torch.arange(len(ids), device=device)[:, None]
        orders = {name: uniform(key, "order", (spec.steps,)).argsort(dim=1) for name, spec in self.streams.items()}
        return batch | {name: batch[name][row, order] for name, order in orders.items()}
