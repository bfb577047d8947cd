"""A masked JEPA written plainly: what `masked_step` compares with.

As the published implementations of I-JEPA and V-JEPA do it: patches by a convolution of the whole picture, positions added or, for
clips, turned with tables that every block makes again for queries and for keys, masked tokens dropped behind the embedding, a context
that is repeated for each target, sets cut to equal length by indices (B, K), one call a family. Attention is a softmax written out
for pictures and torch's own for clips, and pairs of channels turn by one angle each, which the published tables of V-JEPA 2 miss.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Families = list[tuple[Tensor, list[Tensor]]]
"""For each family of masks the indices (B, K) of the context, and of each of its targets."""


def picked(x: Tensor, index: Tensor) -> Tensor:
    """x (B, N, D) at index (B, K) -> (B, K, D)."""
    return x.gather(1, index[..., None].repeat(1, 1, x.shape[-1]))


def turned(x: Tensor, position: Tensor) -> Tensor:
    """Pairs (2j, 2j + 1) of x (B, H, M, d) by position (B, H, M) times 10000^(-2j / d)."""
    frequency = 10_000.0 ** -(torch.arange(x.shape[-1] // 2, device=x.device) / (x.shape[-1] // 2))
    angle = position[..., None] * frequency
    sine, cosine = angle.sin().repeat_interleave(2, -1), angle.cos().repeat_interleave(2, -1)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cosine + torch.stack((-odd, even), -1).flatten(-2) * sine


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, axes: int) -> None:
        super().__init__()
        self.heads, self.axes = heads, axes
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B, M, D), positions (B, M, axes)."""
        batch, tokens, width = x.shape
        query, key, value = self.project(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.axes:
            query, key = self.turn(query, positions), self.turn(key, positions)
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """A third of the channels by each axis, as many pairs as go into it; the rest stay."""
        each = 2 * (x.shape[-1] // self.axes // 2)
        where = positions[:, None].repeat(1, self.heads, 1, 1)
        parts = [turned(x[..., axis * each : (axis + 1) * each], where[..., axis]) for axis in range(self.axes)]
        return torch.cat((*parts, x[..., self.axes * each :]), dim=-1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, axes: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, axes)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attention(self.first(x), positions)
        return x + self.mlp(self.second(x))


class Encoder(nn.Module):
    """places (N, axes): where patches lie; table (N, D): what is added to them, where nothing is turned."""

    def __init__(self, patches: nn.Module, width: int, depth: int, heads: int, places: Tensor, table: Tensor | None) -> None:
        super().__init__()
        axes = 0 if table is not None else places.shape[-1]
        self.embed, self.places, self.table = patches, places, table
        self.blocks = nn.ModuleList(Block(width, heads, axes) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor, index: Tensor | None = None) -> Tensor:
        x = self.embed(pixels).flatten(2).transpose(1, 2)
        x = x if self.table is None else x + self.table
        positions = self.places.expand(len(x), -1, -1)
        if index is not None:
            x, positions = picked(x, index), self.places[index]
        for block in self.blocks:
            x = block(x, positions)
        return self.norm(x)


class Predictor(nn.Module):
    def __init__(
        self, outer: int, width: int, depth: int, heads: int, families: int, places: Tensor, table: Tensor | None
    ) -> None:
        super().__init__()
        axes = 0 if table is not None else places.shape[-1]
        self.places, self.table = places, table
        self.embed, self.out = nn.Linear(outer, width), nn.Linear(width, outer)
        self.tokens = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(families))
        self.blocks = nn.ModuleList(Block(width, heads, axes) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, seen: Tensor, context: Tensor, targets: list[Tensor], family: int) -> Tensor:
        """Each target (B, K) as a sequence of its own, behind a copy of the context: (targets * B, K, outer)."""
        asked = torch.cat(targets)
        seen = self.embed(seen)
        tokens = self.tokens[family].expand(*asked.shape, -1)
        if self.table is not None:
            seen, tokens = seen + self.table[context], tokens + self.table[asked]
        positions = torch.cat((self.places[context].repeat(len(targets), 1, 1), self.places[asked]), dim=1)
        x = torch.cat((seen.repeat(len(targets), 1, 1), tokens), dim=1)
        for block in self.blocks:
            x = block(x, positions)
        return self.out(self.norm(x)[:, context.shape[1] :])


class Plain:
    """One training step after another."""

    def __init__(self, encoder: Encoder, predictor: Predictor, smooth: bool, momentum: float, lr: float) -> None:
        self.encoder, self.predictor, self.smooth, self.momentum = encoder, predictor, smooth, momentum
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=lr, weight_decay=0)

    def loss(self, pixels: Tensor, families: Families) -> Tensor:
        with torch.no_grad():
            wanted = self.teacher(pixels)
            wanted = F.layer_norm(wanted, wanted.shape[-1:])
        losses = []
        for number, (context, targets) in enumerate(families):
            told = self.predictor(self.encoder(pixels, context), context, targets, number)
            right = torch.cat([picked(wanted, target) for target in targets])
            losses.append(F.smooth_l1_loss(told, right) if self.smooth else (told - right).abs().mean())
        return torch.stack(losses).mean()

    def step(self, pixels: Tensor, families: Families) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(pixels, families)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
                slow.mul_(self.momentum).add_((1 - self.momentum) * fast)
        return loss.item()
