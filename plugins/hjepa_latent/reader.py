"""An amortised guess of z: a perceptron that sees what is predicted from, and what is to be predicted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.contracts import Spec
from hjepa.nn import MLP


class Reader(nn.Module):
    """Reads `outputs` numbers from the tokens of context and target, of spec `spec`, through one hidden layer.

    Both are read without gradient: where z is searched no gradient passes through z into the states, so none does here.
    """

    def __init__(self, spec: Spec, hidden: int, outputs: int) -> None:
        super().__init__()
        if not spec.width:
            raise ValueError("z is read from tokens, and these states have none; use an encoder that gives tokens")
        self.layers = MLP(2 * spec.tokens * spec.width, hidden, outputs)

    def forward(self, context: Tensor, target: Tensor) -> Tensor:
        """(*shape, N, D) twice -> (*shape, outputs) float32."""
        both = torch.cat((context.flatten(-2), target.flatten(-2)), dim=-1).detach()
        out: Tensor = self.layers(both)
        return out.float()
