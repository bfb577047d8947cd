"""Transformer blocks with the norm before each branch, plain or guided (adaLN-Zero, Peebles & Xie 2023).

Each layer is initialised where it is made and nothing goes over the whole tree afterwards, so that the smaller weights of the
residual projections survive: 1 / sqrt(2 depth), for the two branches of each of `depth` blocks (Radford et al. 2019).
Tokens are (B, ..., D): attention flattens the axes between, everything else broadcasts over them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hjepa.nn.attention import Attend, Mask, attend
from hjepa.nn.positions import rotate

Past = tuple[Tensor, Tensor]
"""Keys and values (B, H, M, D of a head) of the tokens before."""


def linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    """A linear layer that gives unit variance for unit variance, times `scale`; its bias is 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=scale * inputs**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """(..., inputs) -> (..., outputs) through `depth` hidden layers of GELU."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [linear(inputs, hidden), nn.GELU()]
            inputs = hidden
        self.layers = nn.Sequential(*layers, linear(inputs, outputs, scale))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class PlainNorm(nn.Module):
    """LayerNorm before a branch whose output is added as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, guide: Tensor | None = None) -> tuple[Tensor, None]:
        """The normed tokens, and no gate."""
        return self.norm(x), None


class AdaptiveNorm(nn.Module):
    """LayerNorm whose shift and scale, and the gate of the branch after it, are read from a guide.

    All three are 0 at the start, so that a new block is the identity (adaLN-Zero).
    """

    def __init__(self, width: int, guide: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.read = linear(guide, 3 * width, scale=0.0)

    def forward(self, x: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, ..., D), guide (B, ..., G) broadcast over its axes -> the normed tokens and the gate."""
        shift, scale, gate = self.read(F.silu(guide)).chunk(3, dim=-1)
        return self.norm(x) * (1 + scale) + shift, gate


class SelfAttention(nn.Module):
    """Attention of tokens to each other and to those before them. ValueError where heads do not divide the width."""

    def __init__(self, width: int, heads: int, scale: float = 1.0, attend: Attend = attend) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be shared by {heads} heads")
        self.heads, self.attend = heads, attend
        self.project = linear(width, 3 * width)
        self.out = linear(width, width, scale)

    def forward(self, x: Tensor, mask: Mask, by: Tensor | None, past: Past | None) -> tuple[Tensor, Past]:
        """(B, ..., D) -> the same shape, and the keys and values of `past` and of x."""
        query, key, value = rearrange(self.project(x).flatten(1, -2), "b m (part h d) -> part b h m d", part=3, h=self.heads)
        if by is not None:
            query, key = rotate(query, by), rotate(key, by)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        mixed = rearrange(self.attend(query, key, value, mask), "b h m d -> b m (h d)")
        return self.out(mixed).view_as(x), (key, value)

    def of_some(self, x: Tensor, some: Tensor | slice, mask: Mask, by: Tensor | None) -> Tensor:
        """x (B, M, D) -> what the tokens `some` of it give, (B, K, D). The others are looked at and ask for nothing."""
        width, weight, bias = x.shape[-1], self.project.weight, self.project.bias
        query = rearrange(F.linear(x[:, some], weight[:width], bias[:width]), "b m (h d) -> b h m d", h=self.heads)
        seen = F.linear(x, weight[width:], bias[width:])
        key, value = rearrange(seen, "b m (part h d) -> part b h m d", part=2, h=self.heads)
        if by is not None:
            query, key = rotate(query, by[some]), rotate(key, by)
        return self.out(rearrange(self.attend(query, key, value, mask), "b h m d -> b m (h d)"))


class Block(nn.Module):
    """Attention and MLP, each after its norm and added to the tokens.

    width, heads, mlp_ratio: the usual; depth: how many such blocks there are, for the initial weights;
    guide: how wide the guide is, 0 without one; dropout: of each branch; attend: what computes attention.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        mlp_ratio: float = 4.0,
        guide: int = 0,
        dropout: float = 0.0,
        attend: Attend = attend,
    ) -> None:
        super().__init__()
        scale = (2 * depth) ** -0.5
        self.attention_norm, self.mlp_norm = (AdaptiveNorm(width, guide) if guide else PlainNorm(width) for _ in "am")
        self.attention = SelfAttention(width, heads, scale, attend)
        self.mlp = MLP(width, round(mlp_ratio * width), width, scale=scale)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Mask = None, by: Tensor | None = None, guide: Tensor | None = None) -> Tensor:
        """x (B, ..., D) with M tokens a sample; mask for `attend`; by: `rotation` of the M tokens; guide (B, ..., G)."""
        return self.extend(x, None, mask, by, guide)[0]

    def of_some(self, x: Tensor, some: Tensor | slice, mask: Mask = None, by: Tensor | None = None) -> Tensor:
        """x (B, M, D) -> what `forward` gives of the tokens `some`, (B, K, D), where nobody needs the others; without a guide.

        For a last block. `mask` says which of all tokens these see.
        """
        mixed = self.attention.of_some(self.attention_norm(x)[0], some, mask, by)
        x = x[:, some] + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.mlp_norm(x)[0]))

    def extend(
        self,
        x: Tensor,
        past: Past | None,
        mask: Mask = None,
        by: Tensor | None = None,
        guide: Tensor | None = None,
    ) -> tuple[Tensor, Past]:
        """The same for tokens that come after `past`, and the past of the tokens after them."""
        normed, gate = self.attention_norm(x, guide)
        mixed, past = self.attention(normed, mask, by, past)
        x = x + _through(gate, self.dropout(mixed))
        normed, gate = self.mlp_norm(x, guide)
        return x + _through(gate, self.dropout(self.mlp(normed))), past


def _through(gate: Tensor | None, branch: Tensor) -> Tensor:
    return branch if gate is None else gate * branch
