"""Predicts the next step from the last one alone, and from what leads there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Spec, States
from hjepa.nn import MLP


class Markov(nn.Module):
    """hidden: width of the perceptron that gives the change."""

    def __init__(self, spec: Spec, *, hidden: Count = 16) -> None:
        super().__init__()
        self.latent = spec.latent
        self.change = MLP(spec.width + spec.actions + spec.condition + spec.latent, hidden, spec.width)

    def forward(self, states: States, condition: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        if condition is not None and condition.shape[1] > 1:
            condition = condition[:, :-1]
        return self._next(states.tokens[:, :-1], states.actions, condition, z)

    def start(self, states: States, condition: Tensor | None = None) -> Any:
        last = states.tokens[:, -1:]
        return {"last": last, "condition": last.new_zeros(len(last), 1, 0) if condition is None else condition[:, -1:]}

    def step(
        self, carry: Any, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        condition = carry["condition"] if condition is None else condition
        leads = [None if lead is None else lead[:, None] for lead in (action, z)]
        tokens = self._next(carry["last"], leads[0], condition, leads[1])
        return tokens[:, 0], {"last": tokens, "condition": condition}

    def _next(self, now: Tensor, *leads: Tensor | None) -> Tensor:
        """now (B, T, N, D), and the action, the condition and z (B, T or 1, ...)."""
        given = [lead for lead in leads[:2] if lead is not None]
        given.append(now.new_zeros(len(now), 1, self.latent) if leads[2] is None else leads[2])
        wide = [lead[:, :, None].expand(*now.shape[:3], -1) for lead in given]
        return now + self.change(torch.cat((now, *wide), dim=-1))
