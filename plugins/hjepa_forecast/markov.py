"""What predictors that look at the last step alone have in common: what they have seen, and what leads on from it."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from hjepa.contracts import Spec, States


class Carry(TypedDict):
    """What has been seen, as far as it matters."""

    last: Tensor
    """(B, N, D)."""
    condition: Tensor
    """(B, 1, C): the newest one, which holds until another is given."""


class Markov(nn.Module):
    """A predictor that looks at the last step alone. What comes next, `following` says."""

    def following(self, tokens: Tensor, action: Tensor | None, condition: Tensor | None, z: Tensor | None) -> Tensor:
        """What comes after each step of tokens (B, T, N, D); what leads there is (B, T, ...) or (B, 1, ...)."""
        raise NotImplementedError

    def forward(self, states: States, condition: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """(B, T-1, N, D): steps 1 to T-1, each from the true step before it.

        condition (B, 1, C) or (B, T, C), z (B, T-1, Z) or none for zeros. What belongs to step t leads to step t + 1.
        ValueError where an action, a condition or z is missing, unknown here or of another width.
        """
        if condition is not None and condition.shape[1] > 1:
            condition = condition[:, :-1]
        return self.following(_read(states)[:, :-1], states.actions, condition, z)

    def start(self, states: States, condition: Tensor | None = None) -> Carry:
        """The carry that has seen all of `states`."""
        last = _read(states)[:, -1]
        condition = last.new_zeros(len(last), 1, 0) if condition is None else condition
        return {"last": last, "condition": condition[:, -1:]}

    def step(
        self, carry: Carry, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """action (B, A), condition (B, 1, C) or none for the one before, z (B, Z) -> the next step (B, N, D) and its carry."""
        condition = carry["condition"] if condition is None else condition
        action, z = (None if lead is None else lead[:, None] for lead in (action, z))
        predicted = self.following(carry["last"][:, None], action, condition, z)[:, 0]
        return predicted, {"last": predicted, "condition": condition}


class Leads:
    """What leads from a step to the next, side by side. `by`: the predictor that it is made for, by name."""

    def __init__(self, by: str, spec: Spec) -> None:
        if not spec.width:
            raise ValueError(
                f"{by} predicts tokens, and the states that it is given have none; use an encoder that gives tokens"
            )
        self.by, self.widths = by, {"action": spec.actions, "condition": spec.condition, "z": spec.latent}
        self.width = sum(self.widths.values())

    def __call__(self, tokens: Tensor, action: Tensor | None, condition: Tensor | None, z: Tensor | None) -> Tensor:
        """(B, T, 1, width), for tokens (B, T, N, D); z is zeros where there is none.

        ValueError where an action or a condition is missing, or one of them is unknown here or of another width.
        """
        batch, steps = tokens.shape[:2]
        z = tokens.new_zeros(batch, 1, self.widths["z"]) if z is None else z
        leads = [tokens.new_zeros(batch, steps, 0)]
        for (what, wide), lead in zip(self.widths.items(), (action, condition, z), strict=True):
            got = 0 if lead is None else lead.shape[-1]
            if got != wide:
                raise ValueError(f"{self.by} is made for {what} of width {wide}, and is given width {got}")
            if lead is not None:
                leads.append(lead.to(tokens.dtype).expand(batch, steps, -1))
        return torch.cat(leads, dim=-1)[:, :, None]


def _read(states: States) -> Tensor:
    return states.tokens if states.valid is None else states.tokens.masked_fill(~states.valid[..., None], 0)
