"""The mean absolute difference: what V-JEPA (arXiv 2404.08471) compares features with."""

from __future__ import annotations

from torch import Tensor, nn

from hjepa.contracts import Spec
from hjepa.nn.statistics import at_least_float32


class L1(nn.Module):
    """Mean over D of |prediction - target|: robust to single wide dimensions; its minimiser is the median of the targets."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(..., D) and (..., D) -> (...)."""
        return (at_least_float32(prediction) - at_least_float32(target)).abs().mean(-1)
