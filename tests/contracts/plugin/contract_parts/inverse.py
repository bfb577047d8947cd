"""What was done between two steps can be read from their states (inverse dynamics, PLDM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.contracts import Here, NonNegative, Pair, Spec
from hjepa.nn import MLP


class Inverse(nn.Module):
    """weight: of the term."""

    def __init__(self, spec: Spec, *, weight: NonNegative = 1.0) -> None:
        super().__init__()
        if not spec.actions:
            raise ValueError("inverse reads actions from states, and there are no actions here")
        self.weight, self.read = weight, MLP(2 * spec.width, 16, spec.actions)

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        states = pair.embedding.mean(dim=2)
        told = self.read(torch.cat((states[:, :-1], states[:, 1:]), dim=-1))
        return {"action": self.weight * (told - here.states.actions.detach()).square().mean()}
