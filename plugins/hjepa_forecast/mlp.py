"""A perceptron that predicts the next step from the last one alone, token by token.

The predictor of BYOL (arXiv:2006.07733, figure 8) and SimSiam (arXiv:2011.10566, section 3) with `batch_norm`; for worlds that are
Markov in their states it is all that a step needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Spec
from hjepa.nn import linear
from hjepa.nn.batch_norm import BatchNorm
from hjepa_forecast.markov import Leads, Markov


class StepMLP(Markov):
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

    def following(self, tokens: Tensor, action: Tensor | None, condition: Tensor | None, z: Tensor | None) -> Tensor:
        """What comes after each step of tokens (B, T, N, D); what leads there is (B, T, ...) or (B, 1, ...)."""
        leads = self.leads(tokens, action, condition, z).expand(*tokens.shape[:3], -1)
        out: Tensor = self.layers(torch.cat((tokens, leads), dim=-1))
        return tokens + out if self.residual else out
