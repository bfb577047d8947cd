"""What losses over many samples share: which embeddings are the samples of one statistic, and its precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from hjepa.errors import Mistake

Over = Literal["all", "step", "batch", "time"]
"""Which embeddings are the samples of one statistic; where there are several statistics, their mean counts."""


def grouped(embedding: Tensor, over: Over) -> Tensor:
    """(B, T, N, D) or (M, D) -> (groups, rows, D): one statistic a group, over its rows.

    `all`: every row, in one group. `step`: the samples and tokens of each time step (LeWM). `batch`: those of the first step
    alone (the code of PLDM). `time`: the steps of each token of each sample (PLDM's temporal terms). Packed rows (M, D) have
    no steps and allow `all` only.
    """
    width = embedding.shape[-1]
    if over == "all":
        return embedding.reshape(1, -1, width)
    if embedding.dim() != 4:
        raise Mistake(f"over: {over} needs embeddings (B, T, N, D); here they are packed rows (M, D): write `over: all`")
    if over == "step":
        return embedding.transpose(0, 1).flatten(1, 2)
    if over == "batch":
        return embedding[:, 0].reshape(1, -1, width)
    return embedding.transpose(1, 2).flatten(0, 1)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions as float32, float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Matrix products of what lies on the device of `x` keep their precision within."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
