"""Word numbers -> tokens: a transformer over a phrase that can look at some of its words alone (data2vec)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from contract_parts.trunk import Trunk
from hjepa.contracts import Count, Features, Packed, Spec, States
from hjepa.nn import grid_positions, sincos


class Words(nn.Module):
    """width, depth: of the transformer."""

    def __init__(self, spec: Spec, *, width: Count = 16, depth: Count = 3) -> None:
        super().__init__()
        if not spec.vocabulary:
            raise ValueError("words reads numbers of words, and what it is given has no vocabulary")
        self.embed = nn.Embedding(spec.vocabulary, width)
        self.trunk = Trunk(width, depth)
        self.spec = spec.giving(width, spec.grid)

    def tokens(self, below: States) -> Tensor:
        """(B, T, N, D), before any of them sees another."""
        positions = grid_positions(self.spec.grid, below.tokens.device)
        return self.embed(below.tokens[..., 0]) + sincos(positions, self.spec.width)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        return self.trunk.full(self.tokens(below), below.valid, layers)

    def encode_kept(self, below: States, keep: Packed) -> Packed:
        return self.trunk.kept(self.tokens(below), keep)
