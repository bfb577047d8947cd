"""A state that moves by its action: the exact model of a dot, but for one learned gain an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hjepa.contracts import Spec, States


class Drift(nn.Module):
    """Actions must be as wide as states."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        if spec.actions != spec.width:
            raise ValueError(f"drift adds actions to states: one has width {spec.actions}, the other {spec.width}")
        self.gain = nn.Parameter(torch.ones(spec.width))

    def forward(self, states: States, condition: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        return states.tokens[:, :-1] + self.gain * states.actions[:, :, None]

    def start(self, states: States, condition: Tensor | None = None) -> Any:
        return states.tokens[:, -1]

    def step(
        self, carry: Any, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        tokens = carry + self.gain * action[:, None]
        return tokens, tokens
