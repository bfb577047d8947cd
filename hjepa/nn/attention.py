"""Attention, and the descriptions of which tokens see which. What computes it faster on one kind of device is a component.

Softmax attention is that of Vaswani et al. 2017, equation 1. Token sets of different sizes lie one after the other in a single
sequence (1, M, D), which everything but attention treats token by token; only here is it known where one set ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""A way to compute attention: query, key, value (B, H, M, D) and a mask, as of `attend`."""


@dataclass(frozen=True, eq=False)
class Sets:
    """Each token sees the tokens of its own set: blocks along the diagonal.

    Make it once a step and share it between blocks: where the sets end is asked of the device once.
    """

    lengths: Tensor
    """(sets,) int64: how many queries each set has."""
    key_lengths: Tensor | None = None
    """(sets,) int64: how many keys the queries of each set see, at least one; None where the queries see one another."""

    @cached_property
    def on_host(self) -> tuple[list[int], list[int]]:
        """The lengths of queries and of keys as numbers, which waits for the device."""
        if self.key_lengths is None:
            return (lengths := self.lengths.tolist()), lengths
        both = torch.stack((self.lengths, self.key_lengths)).tolist()
        return both[0], both[1]

    @cached_property
    def starts(self) -> tuple[Tensor, Tensor]:
        """(sets + 1,) int32 each: before which query and which key each set begins, and where the last one ends."""
        keys = self.lengths if self.key_lengths is None else self.key_lengths
        return _starts(self.lengths), _starts(keys)

    def materialize(self, queries: int, keys: int, device: torch.device | None = None) -> Tensor:
        """(queries, keys) bool, true where a query sees a key."""
        of_query = _numbered(self.lengths, queries, device)
        of_key = of_query if self.key_lengths is None else _numbered(self.key_lengths, keys, device)
        return of_query[:, None] == of_key


@dataclass(frozen=True)
class BlockCausal:
    """Tokens come in steps: those of a step see one another and those of all steps before."""

    tokens: int
    """How many a step has."""

    def materialize(self, queries: int, keys: int, device: torch.device | None = None) -> Tensor:
        """(queries, keys) bool, true where a query sees a key. Where there are fewer queries than keys, they are the last."""
        step = torch.arange(keys, device=device) // self.tokens
        return step[keys - queries :, None] >= step


Mask = Tensor | Sets | BlockCausal | None
"""Which tokens see which. A tensor is boolean and broadcast to (B, H, M, S); None is everything."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask = None) -> Tensor:
    """softmax(query key^T / sqrt(D)) value: (B, H, M, D), (B, H, S, D), (B, H, S, D) -> (B, H, M, D), on any device.

    Each query must see at least one key. What it does not see has no influence at all, not even on the last bit.
    """
    if isinstance(mask, Sets):
        return _set_by_set(query, key, value, mask)
    if isinstance(mask, BlockCausal):
        mask = mask.materialize(query.shape[2], key.shape[2], query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it would be compiled again for each new list of lengths
def _set_by_set(query: Tensor, key: Tensor, value: Tensor, sets: Sets) -> Tensor:
    """Sets side by side where all are as long, else one after the other: on a CPU faster than any mask or padding."""
    lengths, key_lengths = sets.on_host
    if len(set(lengths)) == len(set(key_lengths)) == 1:
        query, key, value = (rearrange(x, "b h (s m) d -> (b s) h m d", s=len(lengths)) for x in (query, key, value))
        return rearrange(F.scaled_dot_product_attention(query, key, value), "(b s) h m d -> b h (s m) d", s=len(lengths))
    each = zip(torch.split(query, lengths, 2), *(torch.split(x, key_lengths, 2) for x in (key, value)), strict=True)
    # Tokens come before heads in memory, as the layer after attention reads them.
    return torch.cat([F.scaled_dot_product_attention(q, k, v).transpose(1, 2) for q, k, v in each], dim=1).transpose(1, 2)


def _numbered(lengths: Tensor, tokens: int, device: torch.device | None) -> Tensor:
    """(tokens,): which set each is in."""
    lengths = lengths.to(device)
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=tokens)


def _starts(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
