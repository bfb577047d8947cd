"""A narrow transformer that fills in masked tokens: a learned token at each place that is asked for, told from the context.

The predictor of I-JEPA (arXiv:2301.08243, appendix A) and, with a learned token for each family of masks, of V-JEPA
(arXiv:2404.08471, section 3). Each set of places is told by itself, so no target sees where the others are.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hjepa.contracts import Attention, Build, Count, Packed, Positive, Spec, by_name
from hjepa.nn import Attend, Block, Sets, linear, rotation, sincos
from hjepa.nn.packing import sets


class MaskTokens(nn.Module):
    """Each set of places is a sequence of its own, behind a copy of the context of its row.

    width, depth, heads, mlp_ratio: of the transformer; rotary: positions turn queries and keys, instead of being added;
    shared_context: the context is computed once and does not see what is asked for: it sees itself, and each set of places sees it
    and itself. With several sets a row this costs less, and it is another model; attention: what computes it.

    The learned tokens start at 0. A condition and a z, where there are any, are mapped to the width and added to them.
    """

    def __init__(
        self,
        spec: Spec,
        families: tuple[str, ...],
        *,
        width: Count = 384,
        depth: Count = 6,
        heads: Count = 12,
        mlp_ratio: Positive = 4.0,
        rotary: bool = False,
        shared_context: bool = False,
        attention: Build[Attention] = by_name("auto"),
    ) -> None:
        super().__init__()
        if not spec.width:
            raise ValueError("mask_tokens fills in tokens, and the states that it is given have none")
        pair = 2 * heads if rotary else 2
        if width % pair or width % heads:
            raise ValueError(f"width {width} must be even and a multiple of {heads} heads, with rotary of twice as many")
        self.width, self.head, self.shared = width, width // heads if rotary else 0, shared_context
        self.tokens = nn.ParameterDict({family: nn.Parameter(torch.zeros(width)) for family in families})
        self.embed, self.out = linear(spec.width, width), linear(width, spec.width)
        self.condition = linear(spec.condition, width) if spec.condition else None
        self.latent = linear(spec.latent, width) if spec.latent else None
        attend: Attend = Around(attention()) if shared_context else attention()
        self.blocks = nn.ModuleList(Block(width, heads, depth, mlp_ratio, attend=attend) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, context: Packed, query: Packed, condition: Tensor | None = None, z: Tensor | None = None) -> Packed:
        """context (Mc, D), one set a row; query with any number of sets a row -> query with values (M, D)."""
        asked = self.tokens[query.family].expand(len(query.positions), -1)
        for layer, lead in ((self.condition, condition), (self.latent, z)):
            if layer is not None and lead is not None:
                asked = asked + layer(lead)[query.row[sets(query)]]
        x, positions = torch.cat((self.embed(context.values), asked)), torch.cat((context.positions, query.positions))
        if not self.head:
            x = x + sincos(positions, self.width)
        plan = _shared(context, query) if self.shared else _copied(context, query)
        x, by = x[plan.order], rotation(positions[plan.order], self.head) if self.head else None
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x[None], plan.mask, by)[0]
        # Nobody reads what the last block makes of the context.
        x = cast(Block, last).of_some(x[None], plan.asked, plan.last, by)[0]
        return Packed(self.out(self.norm(x)), query.lengths, query.positions, query.row, query.family)


class Plan(NamedTuple):
    """How context and places, one behind the other, are laid out for the blocks."""

    order: Tensor | slice
    """Which of them lies where."""
    asked: Tensor | slice
    """Where the places are then."""
    mask: Any
    """Which see which."""
    last: Any
    """Which of all of them each place sees."""


def _copied(context: Packed, query: Packed) -> Plan:
    """Every set of places as a sequence of its own, behind a copy of the context."""
    order, own, lengths = _joint(context, query)
    return Plan(order, own.nonzero()[:, 0], Sets(lengths), Sets(query.lengths, lengths))


def _shared(context: Packed, query: Packed) -> Plan:
    """Every context and every set of places once."""
    seen, _, lengths = _joint(context, query)
    count = len(context.values)
    halves = Halves(count, Sets(context.lengths), Sets(query.lengths, lengths), seen)
    return Plan(slice(None), slice(count, None), halves, halves._replace(context=0))


def _joint(context: Packed, query: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """For each set of places the context of its row and then the set itself: which of all tokens (L,), which of these are places
    (L,), and how many each set has.
    """
    before, count = context.lengths[query.row], len(context.values)
    lengths = before + query.lengths
    each = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    within = torch.arange(len(each), device=each.device) - _starts(lengths)[each]
    own = within >= before[each]
    of_query = (count + _starts(query.lengths) - before)[each]
    return within + torch.where(own, of_query, _starts(context.lengths)[query.row][each]), own, lengths


def _starts(lengths: Tensor) -> Tensor:
    return lengths.cumsum(0) - lengths


class Halves(NamedTuple):
    """Which tokens see which, where context comes first and places behind it."""

    context: int
    """How many of the queries are context."""
    seeing: Sets
    """Of the context: each set itself."""
    asking: Sets
    """Of the places: each set what `seen` lists for it."""
    seen: Tensor


class Around:
    """Attention of context and places, by two calls of another one."""

    def __init__(self, attend: Attend) -> None:
        self.attend = attend

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Halves) -> Tensor:
        """(1, H, M, D) each -> (1, H, M, D)."""
        context, places = slice(0, mask.context), slice(mask.context, None)
        asked = self.attend(query[:, :, places], key[:, :, mask.seen], value[:, :, mask.seen], mask.asking)
        if not mask.context:
            return asked
        told = self.attend(query[:, :, context], key[:, :, context], value[:, :, context], mask.seeing)
        return torch.cat((told, asked), dim=2)
