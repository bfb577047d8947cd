"""Clips -> tokens (t h w): a vision transformer that can look at some of its tokens alone (I-JEPA, V-JEPA)."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from contract_parts.trunk import Trunk
from hjepa.contracts import Count, Features, Packed, Spec, States
from hjepa.nn import grid_positions, linear, sincos


class Patches(nn.Module):
    """width, depth: of the transformer; patch: pixels of a token's side; tubelet: its frames."""

    def __init__(self, spec: Spec, *, width: Count = 16, depth: Count = 2, patch: Count = 4, tubelet: Count = 1) -> None:
        super().__init__()
        channels, height, breadth = spec.maps[0]
        self.grid, self.patch = (spec.window // tubelet, height // patch, breadth // patch), patch
        self.embed = linear(channels // self.grid[0] * patch**2, width)
        self.trunk = Trunk(width, depth)
        self.spec = spec.giving(width, self.grid)

    def tokens(self, below: States) -> Tensor:
        """(B, T, N, D), before any of them sees another."""
        pattern = "b t (s c) (h p) (w q) -> b t (s h w) (c p q)"
        cut = rearrange(below.maps[0], pattern, s=self.grid[0], p=self.patch, q=self.patch)
        return self.embed(cut) + sincos(grid_positions(self.grid, cut.device), self.spec.width)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        return self.trunk.full(self.tokens(below), None, layers)

    def encode_kept(self, below: States, keep: Packed) -> Packed:
        return self.trunk.kept(self.tokens(below), keep)
