"""What encoders of token sets share: transformer blocks on all tokens of a row, or on some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from hjepa.contracts import Features, Packed
from hjepa.nn import Block
from hjepa.nn.packing import padded, taken


class Trunk(nn.Module):
    """Its layers are `block1`, `block2`, ..."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({f"block{n + 1}": Block(width, 2, depth) for n in range(depth)})

    def full(self, tokens: Tensor, valid: Tensor | None, layers: Sequence[str]) -> Features:
        """tokens (B, T, N, D), valid (B, T, N)."""
        mask = None if valid is None else valid.flatten(0, 1)[:, None, None]
        x, asked = tokens.flatten(0, 1), {}
        for name, block in self.blocks.items():
            x = block(x, mask)
            asked[name] = x.view_as(tokens)
        return Features(x.view_as(tokens), layers={name: asked[name] for name in layers}, valid=valid)

    def kept(self, tokens: Tensor, keep: Packed) -> Packed:
        """The others are gone before the first block."""
        x, mask = padded(taken(tokens, keep))
        for block in self.blocks.values():
            x = block(x, mask[:, None, None])
        return replace(keep, values=x[mask])
