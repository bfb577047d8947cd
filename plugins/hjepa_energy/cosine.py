"""The angle alone: BYOL's energy (arXiv 2006.07733, equation 2) without its factor 2."""

from __future__ import annotations

from torch import Tensor, nn

from hjepa.contracts import Spec
from hjepa.nn.statistics import at_least_float32

SHORTEST = 1e-4


class Cosine(nn.Module):
    """1 - cos(prediction, target), from 0 (same direction) to 2 (opposite); lengths do not count.

    It is taken as half the squared distance of the unit vectors, which is the same number and exactly 0 for equal vectors.
    Vectors shorter than 1e-4 have no direction: they shrink towards 0 instead, at energy 1/2 from every unit vector.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(..., D) and (..., D) -> (...)."""
        prediction = nn.functional.normalize(at_least_float32(prediction), dim=-1, eps=SHORTEST)
        target = nn.functional.normalize(at_least_float32(target), dim=-1, eps=SHORTEST)
        return (prediction - target).square().sum(-1) / 2
