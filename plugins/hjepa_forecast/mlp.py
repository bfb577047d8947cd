"""A perceptron that predicts the next step from the last one alone, token by token.

The predictor of BYOL (arXiv:2006.07733, figure 8) and SimSiam (arXiv:2011.10566, section 3) with `batch_norm`; for worlds that are
Markov in their states it is all that a step needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Spec, States
from hjepa.nn import linear
from hjepa.nn.batch_norm import BatchNorm
from hjepa_forecast.markov import Carry, Leads, started, stepped, taught


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
        self.spec, self.residual, self.leads = spec, residual, Leads("mlp", spec)
        hidden, inputs, layers = hidden or 4 * spec.width, spec.width + self.leads.width, []
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
        return taught(self._next, states, condition, z)

    def start(self, states: States, condition: Tensor | None = None) -> Carry:
        """The carry that has seen all of `states`."""
        return started(states, condition)

    def step(
        self, carry: Carry, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """action (B, A), condition (B, 1, C) or none for the one before, z (B, Z) -> the next step (B, N, D) and its carry."""
        return stepped(self._next, carry, action, condition, z)

    def _next(self, tokens: Tensor, action: Tensor | None, condition: Tensor | None, z: Tensor | None) -> Tensor:
        """What comes after each step of tokens (B, T, N, D); what leads there is (B, T, ...) or (B, 1, ...)."""
        leads = self.leads(tokens, action, condition, z).expand(*tokens.shape[:3], -1)
        out: Tensor = self.layers(torch.cat((tokens, leads), dim=-1))
        return tokens + out if self.residual else out
