"""A chunk of actions -> one macro-action, read off by a token of its own (HWM's Push-T and Franka, arXiv:2604.03208).

It looks at the actions one by one, and so asks less of the data than a perceptron where a chunk is long.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.contracts import ActionSpace, Count, Spec, Whole
from hjepa.nn import Block, PlainNorm, grid_positions, linear, sincos
from hjepa_forecast.anchors import Anchors, between, width_of_one


class MacroTransformer(nn.Module):
    """Within -1 and 1, by tanh. width: of the macro-action; dim, depth, heads: of the transformer; anchors: how many chunks of the
    training data plans are made of, 0 for any plan.
    """

    def __init__(
        self, spec: Spec, *, width: Count = 4, dim: Count = 32, depth: Count = 2, heads: Count = 4, anchors: Whole = 256
    ) -> None:
        super().__init__()
        one = width_of_one(spec, "transformer")
        if dim % 2 or dim % heads:
            raise ValueError(f"dim is {dim}: write an even number that {heads} heads can share")
        self.width, self.dim, self.joined = width, dim, spec.joined
        self.embed = linear(one, dim)
        self.reader = nn.Parameter(nn.init.normal_(torch.empty(dim), std=0.02))
        self.blocks = nn.ModuleList(Block(dim, heads, depth) for _ in range(depth))
        self.norm = PlainNorm(dim)
        self.out = linear(dim, width)
        self.anchors = Anchors(anchors, spec.actions)

    def forward(self, chunk: Tensor) -> Tensor:
        """(..., J*A) -> (..., width)."""
        self.anchors.keep(chunk)
        return self._encoded(chunk)

    def space(self, chunk: ActionSpace) -> ActionSpace:
        """The macro-actions of chunks that were seen; before any, all there can be."""
        return self.anchors.space(self._encoded, between(-1.0, 1.0, self.width, chunk.low))

    def _encoded(self, chunk: Tensor) -> Tensor:
        actions = self.embed(chunk.reshape(-1, self.joined, chunk.shape[-1] // self.joined))
        actions = actions + sincos(grid_positions((self.joined,), chunk.device), self.dim).to(actions.dtype)
        x = torch.cat((self.reader.to(actions.dtype).expand(len(actions), 1, -1), actions), dim=1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.out(self.norm(x[:, 0])[0])
        return out.tanh().view(*chunk.shape[:-1], self.width)
