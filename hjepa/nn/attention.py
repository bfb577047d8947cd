"""The one place where attention is computed, so that a faster way to do it is a change of one file."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(D)) value: (B, H, T, D), (B, H, S, D), (B, H, S, D) -> (B, H, T, D).

    `mask` is boolean, broadcast to (B, H, T, S), and true where a query sees a key; each query must see at least one.
    What is masked has no influence at all, not even on the last bit (Vaswani et al. 2017, equation 1).
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
