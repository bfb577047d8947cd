"""What losses over many samples share: which embeddings are the samples of one statistic, and its precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from hjepa.distributed import gather_rows, sum_ranks, world
from hjepa.errors import Mistake

Over = Literal["all", "step", "batch", "time"]
"""Which embeddings are the samples of one statistic; where there are several statistics, their mean counts."""

SHORTEST = 1e-4
"""Vectors shorter than this have no direction."""


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


def samples(embedding: Tensor, over: Over) -> Tensor:
    """The embeddings of all ranks, `grouped`. The groups of `time` lie within samples: no rank needs another's rows."""
    return grouped(embedding if over == "time" else gather_rows(embedding), over)


def row_mean(x: Tensor) -> Tensor:
    """The mean of all numbers of x of all ranks, as the share of this rank: their mean over ranks is the value; 0 of nothing."""
    count = sum_ranks(x.new_full((), x.numel()))
    return x.sum() * (world() / count.clamp(min=1))


def unit(x: Tensor) -> Tensor:
    """(..., D), each vector of length 1, in float32 at least; those shorter than `SHORTEST` shrink towards 0 instead."""
    return nn.functional.normalize(at_least_float32(x), dim=-1, eps=SHORTEST)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions as float32, float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Matrix products of what lies on the device of `x` keep their precision within."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
