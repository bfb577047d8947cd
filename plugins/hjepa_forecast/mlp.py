"""A perceptron that predicts the next step from the last one alone, token by token.

The predictor of BYOL (arXiv:2006.07733, figure 8) and SimSiam (arXiv:2011.10566, section 3) with `batch_norm`; for worlds that are
Markov in their states it is all that a step needs.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Spec, States
from hjepa.nn import linear
from hjepa.nn.batch_norm import BatchNorm


class Carry(TypedDict):
    """What has been seen, as far as it matters."""

    last: Tensor
    """(B, N, D)."""
    condition: Tensor
    """(B, 1, C): the newest one, which holds until another is given."""


class StepMLP(nn.Module):
    """Predicts each token of the next step from the same token of this one, and from what leads there: action, condition and z.

    hidden: width of the layers between, by default four times that of the states; depth: how many of them;
    batch_norm: normalise each of them over the batch, as self-distillation needs it;
    residual: predict the change, so that at the start the prediction is nearly a copy of the last step.
    Tokens that are not valid are read as zeros.
    """

    def __init__(
        self, spec: Spec, *, hidden: Count | None = None, depth: Count = 1, batch_norm: bool = False, residual: bool = True
    ) -> None:
        super().__init__()
        if not spec.width:
            raise ValueError("mlp predicts tokens, and the states that it is given have none; use an encoder that gives tokens")
        self.spec, self.residual = spec, residual
        self.leads = {"action": spec.actions, "condition": spec.condition, "z": spec.latent}
        hidden, inputs, layers = hidden or 4 * spec.width, spec.width + sum(self.leads.values()), []
        for _ in range(depth):
            norm: list[nn.Module] = [BatchNorm(hidden)] if batch_norm else []
            layers += [linear(inputs, hidden), *norm, nn.GELU()]
            inputs = hidden
        self.layers = nn.Sequential(*layers, linear(inputs, spec.width, scale=0.02 if residual else 1.0))

    def forward(self, states: States, condition: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """(B, T-1, N, D): steps 1 to T-1, each from the true step before it.

        condition (B, 1, C) or (B, T, C), z (B, T-1, Z) or none for zeros. What belongs to step t leads to step t + 1.
        ValueError where an action, a condition or z is missing, unknown here or of another width.
        """
        if condition is not None and condition.shape[1] > 1:
            condition = condition[:, :-1]
        return self._next(_read(states)[:, :-1], states.actions, condition, z)

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
        predicted = self._next(carry["last"][:, None], action, condition, z)[:, 0]
        return predicted, {"last": predicted, "condition": condition}

    def _next(self, tokens: Tensor, action: Tensor | None, condition: Tensor | None, z: Tensor | None) -> Tensor:
        """What comes after each step of tokens (B, T, N, D); what leads there is (B, T, ...) or (B, 1, ...)."""
        z = tokens.new_zeros(*tokens.shape[:1], 1, self.leads["z"]) if z is None else z
        leads = []
        for (what, wide), lead in zip(self.leads.items(), (action, condition, z), strict=True):
            got = 0 if lead is None else lead.shape[-1]
            if got != wide:
                raise ValueError(f"mlp is made for {what} of width {wide}, and is given width {got}")
            if lead is not None:
                leads.append(lead.to(tokens.dtype)[:, :, None].expand(*tokens.shape[:3], -1))
        out: Tensor = self.layers(torch.cat([tokens, *leads], dim=-1))
        return tokens + out if self.residual else out


def _read(states: States) -> Tensor:
    return states.tokens if states.valid is None else states.tokens.masked_fill(~states.valid[..., None], 0)
