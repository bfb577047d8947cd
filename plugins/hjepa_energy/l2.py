"""The mean squared difference: the energy of most latent world models (PLDM arXiv 2502.14819, LeWM arXiv 2603.19312)."""

from __future__ import annotations

from torch import Tensor, nn

from hjepa.contracts import Spec
from hjepa.nn.statistics import at_least_float32


class L2(nn.Module):
    """Mean over D of (prediction - target)²; its minimiser is the mean of the targets."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(..., D) and (..., D) -> (...)."""
        return (at_least_float32(prediction) - at_least_float32(target)).square().mean(-1)
