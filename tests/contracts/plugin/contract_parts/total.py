"""A chunk of actions -> where they lead together (a macro-action, HWM); chunks that were seen become anchors of plans."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.contracts import ActionSpace, Count, Spec
from hjepa.distributed import gather_rows


class Total(nn.Module):
    """width: of one action of the chunk, and of their weighted sum; kept: how many chunks are remembered."""

    def __init__(self, spec: Spec, *, width: Count = 2, kept: Count = 12) -> None:
        super().__init__()
        self.width = width
        self.gain = nn.Parameter(torch.ones(width))
        self.register_buffer("seen", torch.zeros(kept, spec.actions))

    def forward(self, chunk: Tensor) -> Tensor:
        if self.training:
            rows = gather_rows(chunk.detach())[:, 0][: len(self.seen)]
            self.seen[: len(rows)] = rows
        return self._total(chunk)

    def space(self, chunk: ActionSpace) -> ActionSpace:
        anchors = self._total(self.seen).detach()
        return ActionSpace(anchors.amin(dim=0), anchors.amax(dim=0), anchors)

    def _total(self, chunk: Tensor) -> Tensor:
        return self.gain * chunk.unflatten(-1, (-1, self.width)).sum(dim=-2)
