"""Attention by the fastest way that device, precision and mask allow."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from hjepa.nn import Mask, Sets
from hjepa_attention.sdpa import SDPA
from hjepa_attention.varlen import Varlen
from hjepa_attention.xformers import XFormers

_log = logging.getLogger("hjepa.attention")


class Auto:
    """Sets by `varlen`, else `xformers`, else `sdpa`: the first that can. All else by `sdpa`, which has the same kernels for it.

    Which one takes the sets is logged once for each device and precision.
    """

    def __init__(self) -> None:
        self.sdpa = SDPA()
        self.ways = (Varlen(), XFormers(), self.sdpa)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        """(B, H, M, D), (B, H, S, D), (B, H, S, D) -> (B, H, M, D)."""
        if not isinstance(mask, Sets):
            return self.sdpa(query, key, value, mask)
        best = next(way for way in self.ways if not way.refuses(query, mask))
        _said(f"attention of packed sets on {query.device.type} in {query.dtype}: {type(best).__name__.lower()}")
        return best(query, key, value, mask)

    def refuses(self, query: Tensor, mask: Mask) -> str:
        return ""


@cache
def _said(what: str) -> None:
    """Once a process."""
    _log.info(what)
