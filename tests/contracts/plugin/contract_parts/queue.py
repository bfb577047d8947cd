"""InfoNCE: a prediction is nearer to its own target than to those of earlier steps, which wait in a queue (MoCo)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa.contracts import Count, Here, NonNegative, Pair, Positive, Spec
from hjepa.distributed import gather_rows


class Queue(nn.Module):
    """weight: of the term; size: of the queue; temperature: of the softmax."""

    def __init__(self, spec: Spec, *, weight: NonNegative = 0.1, size: Count = 16, temperature: Positive = 0.2) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature
        self.register_buffer("rows", F.normalize(torch.randn(size, spec.width), dim=1))
        self.newest = self.rows[:0]

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        own, right = (F.normalize(x.reshape(-1, x.shape[-1]), dim=1) for x in (pair.prediction, pair.target.detach()))
        self.newest = gather_rows(right)
        near = torch.cat(((own * right).sum(dim=1, keepdim=True), own @ self.rows.T), dim=1) / self.temperature
        return {"contrast": -self.weight * F.log_softmax(near, dim=1)[:, 0].mean()}

    def after_step(self, step: int) -> None:
        self.rows.copy_(torch.cat((self.newest, self.rows))[: len(self.rows)])
