"""Attention as torch computes it everywhere: `scaled_dot_product_attention`, and sets of tokens one by one."""

from __future__ import annotations

from torch import Tensor

from hjepa.nn import Mask, attend


class SDPA:
    """Every description, on every device, in every precision."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
        """(B, H, M, D), (B, H, S, D), (B, H, S, D) -> (B, H, M, D)."""
        return attend(query, key, value, mask)

    def refuses(self, query: Tensor, mask: Mask) -> str:
        return ""
