"""Fills in masked tokens: a transformer on the context and one learned token a place, another for each family (V-JEPA)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Packed, Spec
from hjepa.nn import Block, linear, sincos
from hjepa.nn.packing import padded, sets


class Fill(nn.Module):
    """width, depth: of the transformer."""

    def __init__(self, spec: Spec, families: tuple[str, ...], *, width: Count = 16, depth: Count = 1) -> None:
        super().__init__()
        self.width = width
        self.masked = nn.ParameterDict({family: nn.Parameter(torch.zeros(width)) for family in families})
        self.embed, self.out = linear(spec.width, width), linear(width, spec.width)
        self.lead = linear(spec.condition, width) if spec.condition else None
        self.blocks = nn.ModuleList(Block(width, 2, depth) for _ in range(depth))

    def forward(self, context: Packed, query: Packed, condition: Tensor | None = None, z: Tensor | None = None) -> Packed:
        asked = self.masked[query.family] + sincos(query.positions, self.width)
        if self.lead is not None and condition is not None:
            asked = asked + self.lead(condition)[query.row[sets(query)]]
        seen = self.embed(context.values) + sincos(context.positions, self.width)
        (seen, is_seen), (asked, is_asked) = padded(replace(context, values=seen)), padded(replace(query, values=asked))
        seen, is_seen = seen[query.row], is_seen[query.row]
        x, mask = torch.cat((seen, asked), dim=1), torch.cat((is_seen, is_asked), dim=1)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        return replace(query, values=self.out(x[:, seen.shape[1] :][is_asked]))
