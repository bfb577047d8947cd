"""Chunks of actions that were seen in training: where plans are made of their macro-actions, the model knows what it is asked.

A planner that may take any macro-action finds those that no data support, where the model is wrong in its favour; a hierarchy is then
worse than no hierarchy (Hi-LeWM, arXiv:2607.12547). The chunks are kept as they are, and encoded when a plan is made.

    R chunks that are kept    J actions side by side in a chunk    A width of each
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hjepa.contracts import ActionSpace, Spec
from hjepa.randomness import Key, bits

TURNOVER = 16
"""After how many batches, unless they are small, every chunk is a new one: few, as actions of a level below change while it learns."""


class Anchors(nn.Module):
    """The newest `length` of chunks that are drawn from batches, each at most once; a pure function of the batches and their number."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("chunks", torch.zeros(length, width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.chunks: Tensor
        self.seen: Tensor

    @torch.no_grad()
    def keep(self, chunks: Tensor) -> None:
        """Some of chunks (..., J*A). In evaluation mode none is kept."""
        length = len(self.chunks)
        if not (self.training and length and chunks.numel()):
            return
        rows = chunks.flatten(0, -2)
        chosen = bits(Key(self.seen), "anchors", (len(rows),)).argsort()[: -(-length // TURNOVER)]
        places = (self.seen + torch.arange(len(chosen), device=self.seen.device)) % length
        self.chunks.index_copy_(0, places, rows[chosen].to(self.chunks.dtype))
        self.seen += len(chosen)

    @torch.no_grad()
    def space(self, encoded: Callable[[Tensor], Tensor], otherwise: ActionSpace) -> ActionSpace:
        """The macro-actions of what was kept, as `encoded` has them now, and their range; before anything was, `otherwise`."""
        count = min(int(self.seen), len(self.chunks))
        if not count:
            return otherwise
        anchors = encoded(self.chunks[:count]).float()
        return ActionSpace(anchors.amin(dim=0), anchors.amax(dim=0), anchors)


def width_of_one(spec: Spec, name: str) -> int:
    """A: how wide each of the actions is that lie side by side. ValueError where there are none."""
    if not spec.actions:
        raise ValueError(f"{name} makes one action of several, and what is read has none; leave `macro_action` out")
    return spec.actions // spec.joined


def between(low: float, high: float, width: int, like: Tensor) -> ActionSpace:
    """All of a range, the same in each dimension."""
    return ActionSpace(like.new_full((width,), low), like.new_full((width,), high))
