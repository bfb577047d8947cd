"""Barlow Twins (arXiv 2103.03230, equations 1 and 2): each dimension of a prediction correlates with its own of the target alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Here, NonNegative, Pair, Spec
from hjepa.nn.projector import projector as make_projector
from hjepa.nn.statistics import SHORTEST, Over, at_least_float32, samples, without_autocast


class Barlow(nn.Module):
    """The squared distance of the cross-correlation of predictions and targets from the identity.

    A whole objective: the level's own energy may have weight 0. It prevents complete collapse, as a constant correlates with
    nothing and costs 1 a dimension, and dimensional collapse, as no two dimensions may say the same. It does not fix the scale,
    and what is decorrelated may still be the slowest feature of the input. Embeddings that are exactly equal are never parted.

    weight: of both terms.
    off_diagonal: what a squared correlation of two different dimensions counts; the paper's 5e-3.
    divided_by: `nothing` sums over dimensions as the paper does; `dimension` divides both sums by D, so that a weight holds for
        any width; `pair` divides the sum over pairs by D(D-1) instead, as PLDM's covariances are (then `off_diagonal` is about 1).
    over: the samples of one correlation: `all` rows, each `step` by itself, the first step of the `batch`, or the steps of each
        token in `time`; the mean over correlations counts.
    projector: widths of a perceptron that predictions and targets go through first; the paper's is `[8192, 8192, 8192]`.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        weight: NonNegative = 1.0,
        off_diagonal: NonNegative = 5e-3,
        divided_by: Literal["nothing", "dimension", "pair"] = "nothing",
        over: Over = "all",
        projector: tuple[Count, ...] = (),
    ) -> None:
        super().__init__()
        self.weight, self.off_diagonal, self.divided_by, self.over = weight, off_diagonal, divided_by, over
        self.projector = make_projector(spec.width, projector)

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`diagonal` and `off_diagonal`, weighted."""
        prediction, target = (at_least_float32(self.projector(x)) for x in (pair.prediction, pair.target))
        with without_autocast(prediction):
            first, second = (_standardised(samples(x, self.over)) for x in (prediction, target))
            correlation = first.mT @ second
            own = correlation.diagonal(dim1=1, dim2=2)
            others = correlation - torch.diag_embed(own)
            dimensions, pairs = self._counts(own.shape[1])
            on = (1 - own).square().sum(1).mean() / dimensions
            off = others.square().sum((1, 2)).mean() / pairs
            return {"diagonal": self.weight * on, "off_diagonal": self.weight * self.off_diagonal * off}

    def _counts(self, width: int) -> tuple[int, int]:
        """What the sums over the diagonal and beside it are divided by."""
        counts = {"nothing": (1, 1), "dimension": (width, width), "pair": (width, max(1, width * (width - 1)))}
        return counts[self.divided_by]


def _standardised(rows: Tensor) -> Tensor:
    """(groups, rows, D): each column centred and of length 1; one that varies by less than `SHORTEST` shrinks to 0 instead."""
    centred = rows - rows.mean(1, keepdim=True)
    return nn.functional.normalize(centred, dim=1, eps=SHORTEST * rows.shape[1] ** 0.5)
