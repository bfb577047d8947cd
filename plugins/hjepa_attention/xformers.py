"""Attention by xformers' `memory_efficient_attention` (Lefaudeux et al. 2022), on a GPU: packed sets by its BlockDiagonalMask."""

from __future__ import annotations

import logging
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from hjepa.errors import Mistake
from hjepa.nn import BlockCausal, Mask, Sets


class XFormers:
    """Sets, and everything seen by everything, also in float32."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        """(B, H, M, D), (B, H, S, D), (B, H, S, D) -> (B, H, M, D). Mistake for what it refuses."""
        if refusal := self.refuses(query, mask):
            raise Mistake(refusal)
        tokens_first = (x.transpose(1, 2) for x in (query, key, value))
        bias = bias_of(mask) if isinstance(mask, Sets) else None
        out: Tensor = _library().memory_efficient_attention(*tokens_first, attn_bias=bias)
        return out.transpose(1, 2)

    def refuses(self, query: Tensor, mask: Mask) -> str:
        instead = "use `sdpa`, or `auto`"
        if query.device.type != "cuda":
            return f"xformers computes on a GPU, and this is on {query.device.type}: {instead}"
        if isinstance(mask, Tensor | BlockCausal):
            return f"xformers is asked for sets here, and for no {type(mask).__name__} as mask: {instead}"
        if isinstance(mask, Sets) and query.shape[0] > 1:
            return f"xformers takes sets in one sequence (1, M, D), and here are {query.shape[0]}: {instead}"
        reasons = _reasons(query.device, query.dtype, query.shape[-1])
        return f"xformers cannot compute this ({reasons}): {instead}" if reasons else ""


@lru_cache(maxsize=8)
def bias_of(sets: Sets) -> Any:
    """A BlockDiagonalMask on the device of the lengths; one for all blocks of a step."""
    lengths, key_lengths = sets.on_host
    return _library().BlockDiagonalMask.from_seqlens(lengths, key_lengths, device=sets.lengths.device)


@cache
def _reasons(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why no kernel of the library computes heads of that width, in its own words; empty where one does."""
    try:
        library = _library()
    except ImportError as error:
        return f"it cannot be imported: {error}"
    some = torch.empty(1, 8, 1, width, device=device, dtype=dtype, requires_grad=True)
    inputs = library.Inputs(query=some, key=some, value=some)
    pairs = [(part.FwOp, part.BwOp) for part in (library.flash, library.cutlass)]
    reasons = [[*forward.not_supported_reasons(inputs), *backward.not_supported_reasons(inputs)] for forward, backward in pairs]
    return "" if [] in reasons else "; ".join(dict.fromkeys(reason for each in reasons for reason in each))


@cache
def _library() -> Any:
    """Imported where it is used, for it takes seconds, and without its warning of kernels that are not used here."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from xformers.ops import fmha

    return fmha
