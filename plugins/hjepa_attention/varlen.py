"""Attention of packed sets in one kernel: FlashAttention 2 (Dao 2023, arXiv:2307.08691) by torch's `varlen_attn`, on a GPU."""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from hjepa.errors import Mistake
from hjepa.nn import BlockCausal, Mask, Sets


class Varlen:
    """Sets, and everything seen by everything, in half precision."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        """(B, H, M, D), (B, H, S, D), (B, H, S, D) -> (B, H, M, D). Mistake for what it refuses."""
        from torch.nn.attention.varlen import varlen_attn

        if refusal := self.refuses(query, mask):
            raise Mistake(refusal)
        sets = mask if isinstance(mask, Sets) else _rows(query, key)
        (lengths, key_lengths), (starts, key_starts) = sets.on_host, sets.starts
        flat = [rearrange(x, "b h m d -> (b m) h d") for x in (query, key, value)]
        out = cast(Tensor, varlen_attn(flat[0], flat[1], flat[2], starts, key_starts, max(lengths), max(key_lengths)))
        return rearrange(out, "(b m) h d -> b h m d", b=len(query))

    def refuses(self, query: Tensor, mask: Mask) -> str:
        instead = "use `sdpa`, or `auto`"
        if query.device.type != "cuda":
            return f"varlen computes on a GPU, and this is on {query.device.type}: {instead}"
        if isinstance(mask, Tensor | BlockCausal):
            return f"varlen knows sets and no {type(mask).__name__} as mask: {instead}"
        if isinstance(mask, Sets) and query.shape[0] > 1:
            return f"varlen takes sets in one sequence (1, M, D), and here are {query.shape[0]}: {instead}"
        if query.dtype not in (torch.float16, torch.bfloat16):
            return f"varlen computes in bfloat16 or float16, and this is {query.dtype}: train in bfloat16, or {instead}"
        if query.shape[-1] % 8 or query.shape[-1] > 256:
            return f"varlen needs heads of a width that 8 divides, at most 256, and here it is {query.shape[-1]}: {instead}"
        if torch.cuda.get_device_capability(query.device) < (8, 0):
            return f"varlen needs compute capability 8.0, which this GPU does not have: {instead}"
        return ""


def _rows(query: Tensor, key: Tensor) -> Sets:
    """Each row of a batch as a set."""
    queries, keys = (torch.full((len(x),), x.shape[2], device=x.device) for x in (query, key))
    return Sets(queries, keys)
