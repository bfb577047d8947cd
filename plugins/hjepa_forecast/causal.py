"""A transformer over time that predicts the next step: block-causal, as the predictor of V-JEPA 2-AC (Assran et al. 2025).

Tokens of one step see each other and all steps before; the step index turns queries and keys (rotary, Su et al. 2021), so that
only how far apart two steps are matters. What leads to the next step (action, condition) modulates every block (adaLN-Zero,
Peebles & Xie 2023). A latent is mixed in after the blocks, step by step: it changes the prediction of one step and no other,
so that the best z of each step can be searched for by itself, and what a step says of later ones is said by its state alone.
"""

from __future__ import annotations

from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Fraction, Positive, Spec, States
from hjepa.nn import MLP, Block, Past, PlainNorm, grid_positions, linear, rotation, sincos


class Carry(TypedDict):
    """What has been seen. The newest step waits: it enters the blocks together with the action that is taken there."""

    last: Tensor
    """(B, N, D)."""
    condition: Tensor
    """(B, 1, C): the newest one, which holds until another is given."""
    past: tuple[Past, ...]
    """For each block the keys and values of the steps before, (B, H, S*N, D of a head)."""


class Causal(nn.Module):
    """Predicts the next step from all steps before it.

    depth, heads: of the transformer; width: inside it, by default that of the states and at least 64;
    mlp_ratio: hidden width of a block's MLP over `width`; dropout: of each branch;
    residual: predict the change, so that at the start the prediction is nearly a copy of the last step.
    Tokens that are not valid are read as zeros.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        depth: Count = 2,
        heads: Count = 4,
        width: Count | None = None,
        mlp_ratio: Positive = 4.0,
        dropout: Fraction = 0.0,
        residual: bool = True,
    ) -> None:
        super().__init__()
        if not spec.width:
            raise ValueError(
                "causal predicts tokens, and the states that it is given have none; use an encoder that gives tokens"
            )
        pair = 2 * heads
        width = width or -(-max(spec.width, 64) // pair) * pair
        if width % pair:
            raise ValueError(f"width {width} is not a multiple of {pair}: each of {heads} heads turns pairs of channels")
        self.spec, self.heads, self.width, self.residual = spec, heads, width, residual
        self.leads = {"action": spec.actions, "condition": spec.condition, "z": spec.latent}
        wide = spec.actions + spec.condition
        self.guide: nn.Module | None = nn.Sequential(linear(wide, width), nn.SiLU(), linear(width, width)) if wide else None
        self.embed = linear(spec.width, width)
        self.blocks = nn.ModuleList(Block(width, heads, depth, mlp_ratio, width if wide else 0, dropout) for _ in range(depth))
        self.norm = PlainNorm(width)
        self.out = linear(width, spec.width, scale=0.02 if residual else 1.0)
        self.choose = MLP(width + spec.latent, width, width) if spec.latent else None

    def forward(self, states: States, condition: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """(B, T-1, N, D): steps 1 to T-1, each from the true steps before it.

        condition (B, 1, C) or (B, T, C), z (B, T-1, Z) or none for zeros. What belongs to step t leads to step t + 1.
        ValueError where an action, a condition or z is missing, unknown here or of another width.
        """
        tokens = _read(states)[:, :-1]
        return self._extend(tokens, (), states.actions, _before_last(condition), z)[0]

    def start(self, states: States, condition: Tensor | None = None) -> Carry:
        """The carry that has seen all of `states`."""
        tokens = _read(states)
        condition = tokens.new_zeros(len(tokens), 1, 0) if condition is None else condition
        actions = states.actions if states.steps > 1 else tokens.new_zeros(len(tokens), 0, self.spec.actions)
        past = self._extend(tokens[:, :-1], (), actions, _before_last(condition), None)[1]
        return {"last": tokens[:, -1], "condition": condition[:, -1:], "past": past}

    def step(
        self, carry: Carry, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """action (B, A), condition (B, 1, C) or none for the one before, z (B, Z) -> the next step (B, N, D) and its carry."""
        condition = carry["condition"] if condition is None else condition
        predicted, past = self._extend(carry["last"][:, None], carry["past"], action, condition, z)
        return predicted[:, 0], {"last": predicted[:, 0], "condition": condition, "past": past}

    def _extend(
        self,
        tokens: Tensor,
        past: tuple[Past, ...],
        action: Tensor | None,
        condition: Tensor | None,
        z: Tensor | None,
    ) -> tuple[Tensor, tuple[Past, ...]]:
        """What comes after each step of tokens (B, T, N, D) that follow `past`, and the past of the steps after them."""
        count, each = tokens.shape[1:3]
        before = past[0][0].shape[2] // each if past else 0
        leads = self._leads(tokens, {"action": action, "condition": condition, "z": z})
        guide = None if self.guide is None else self.guide(torch.cat(leads[:2], dim=-1))[:, :, None]
        index = torch.arange(before + count, device=tokens.device).repeat_interleave(each)
        new = index[before * each :]
        by = rotation(new[:, None], self.width // self.heads)
        mask = new[:, None] >= index
        x = self.embed(tokens) + sincos(grid_positions(self.spec.grid, tokens.device), self.width).to(tokens.dtype)
        present = []
        for i, block in enumerate(self.blocks):
            x, seen = cast(Block, block).extend(x, past[i] if past else None, mask, by, guide)
            present.append(seen)
        x = self.norm(x)[0]
        if self.choose is not None:
            x = x + self.choose(torch.cat((x, leads[2][:, :, None].expand(*x.shape[:3], -1)), dim=-1))
        out: Tensor = self.out(x)
        return tokens + out if self.residual else out, tuple(present)

    def _leads(self, tokens: Tensor, given: dict[str, Tensor | None]) -> list[Tensor]:
        """(B, T, A), (B, T, C) and (B, T, Z): what leads from each step of `tokens` to the next; width 0 where nothing does."""
        batch, count = tokens.shape[:2]
        if given["z"] is None:
            given["z"] = tokens.new_zeros(batch, 1, self.leads["z"])
        leads = []
        for what, wide in self.leads.items():
            lead = tokens.new_zeros(batch, 1, 0) if (known := given[what]) is None else known
            if lead.shape[-1] != wide:
                raise ValueError(f"causal is made for {what} of width {wide}, and is given width {lead.shape[-1]}")
            lead = lead if lead.ndim == 3 else lead[:, None]
            leads.append(lead.to(tokens.dtype).expand(batch, count, -1))
        return leads


def _read(states: States) -> Tensor:
    return states.tokens if states.valid is None else states.tokens.masked_fill(~states.valid[..., None], 0)


def _before_last(condition: Tensor | None) -> Tensor | None:
    """A condition for each step but the last; one that holds for all steps is kept."""
    return condition if condition is None or condition.shape[1] == 1 else condition[:, :-1]
