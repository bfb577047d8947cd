"""Squared near zero, absolute far from it: the energy of I-JEPA's code and of data2vec (arXiv 2202.03555, equation 2)."""

from __future__ import annotations

from torch import Tensor, nn

from hjepa.contracts import Positive, Spec
from hjepa.nn.statistics import at_least_float32


class SmoothL1(nn.Module):
    """Mean over D of d²/(2 beta) where |d| < beta and of |d| - beta/2 elsewhere, d = prediction - target.

    beta: where the squared part ends, in units of the states.
    """

    def __init__(self, spec: Spec, *, beta: Positive = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(..., D) and (..., D) -> (...)."""
        prediction, target = at_least_float32(prediction), at_least_float32(target)
        return nn.functional.smooth_l1_loss(prediction, target, reduction="none", beta=self.beta).mean(-1)
