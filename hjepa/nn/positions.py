"""Where a token lies: fixed sine-cosine tables (Vaswani et al. 2017) and rotary embedding (Su et al. 2021, RoFormer).

Both take integer positions (..., axes): a grid of any number of axes, a packed subset of one and a step index are all the same.
The pairs of channels are shared out evenly over the axes; pairs that are left over stay at angle 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

BASE = 10_000.0
"""Longest wavelength over 2 pi, in positions."""


def grid_positions(grid: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """(N, axes) int64: the index of each token of a grid, the last axis fastest; `()` is one token without axes."""
    if not grid:
        return torch.zeros(1, 0, dtype=torch.int64, device=device)
    axes = (torch.arange(length, device=device) for length in grid)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def _angles(positions: Tensor, pairs: int, base: float) -> Tensor:
    """(..., axes) -> (..., pairs) float32: position times frequency base^(-j / pairs of the axis)."""
    each = pairs // max(1, positions.shape[-1])
    frequencies = base ** -(torch.arange(each, device=positions.device, dtype=torch.float32) / max(1, each))
    angles = (positions[..., None].float() * frequencies).flatten(-2)
    return F.pad(angles, (0, pairs - angles.shape[-1]))


def _pairs(width: int) -> int:
    if width % 2:
        raise ValueError(f"positions need an even width, got {width}")
    return width // 2


def sincos(positions: Tensor, width: int, base: float = BASE) -> Tensor:
    """(..., axes) int -> (..., width) float32, the sines first and then the cosines. ValueError where `width` is odd."""
    angles = _angles(positions, _pairs(width), base)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def rotation(positions: Tensor, width: int, base: float = BASE) -> Tensor:
    """(..., axes) int -> (..., width / 2, 2) float32: cosine and sine for `rotate`. Make it once and share it between blocks.

    ValueError where `width`, the width of a head, is odd.
    """
    angles = _angles(positions, _pairs(width), base)
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Turn channel pair (2j, 2j + 1) of x (..., M, D) by the angle j of `by` (M, D/2, 2), in float32.

    Keeps the norm, is the identity at position 0, and <rotate(q, p), rotate(k, p')> depends on p - p' alone.
    """
    # A pair is a complex number: one product, which keeps nothing of x for the way back.
    pairs = torch.view_as_complex(rearrange(x.float(), "... (j pair) -> ... j pair", pair=2))
    return torch.view_as_real(pairs * torch.view_as_complex(by)).flatten(-2).to(x.dtype)
