"""W-MSE (arXiv 2007.06346): predictions and targets agree after both were whitened."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Fraction, Here, NonNegative, Pair, Spec, Whole
from hjepa.nn.projector import projected
from hjepa.nn.projector import projector as make_projector
from hjepa.nn.statistics import Over, at_least_float32, samples, unit, without_autocast
from hjepa.randomness import Key, bits

FLOOR = 1e-8
"""What is added to each variance, beside the same share of it, so that equal rows can be whitened: they become 0."""


class Wmse(nn.Module):
    """The squared distance of predictions and targets, each whitened by the Cholesky factor of its own covariance.

    A whole objective: the level's own energy may have weight 0. Whitened rows have unit variance in every direction, so neither
    complete nor dimensional collapse lowers it, down to a standard deviation of about 1e-4 and to the share `shrink` of the mean
    variance: directions below are lost. It does not fix the scale. A covariance of R rows knows R - 1 directions only: where a
    (sub-)batch has no more rows than the width, the term stays finite by shrinking but whitens luck, and prevents little. Exactly
    equal embeddings are never parted. Whitening is computed in float64.

    weight: of the term.
    size: rows of a sub-batch that is whitened by itself, more than the width; 0 whitens all rows at once. Rows are dealt out anew
        at each step, and those left over rest.
    partitions: how often the rows are dealt out at each step.
    shrink: share of the covariance that is replaced by its mean variance in every direction, 0 in the paper.
    normalise: compare directions, as the paper does: 2 - 2 cos. Otherwise the mean squared distance over D.
    over: the rows that are whitened together: `all`, those of each `step`, those of the first step, `batch`, or the steps of each
        token, `time`.
    projector: widths of a perceptron that predictions and targets go through first.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        weight: NonNegative = 1.0,
        size: Whole = 0,
        partitions: Count = 1,
        shrink: Fraction = 1e-4,
        normalise: bool = True,
        over: Over = "all",
        projector: tuple[Count, ...] = (),
    ) -> None:
        super().__init__()
        width = projected(spec.width, projector)
        if 0 < size <= width:
            raise ValueError(f"size {size} is too small: to whiten {width} dimensions takes {width + 1} rows or more")
        self.weight, self.size, self.partitions, self.shrink = weight, size, partitions, shrink
        self.normalise, self.over = normalise, over
        self.projector = make_projector(spec.width, projector)

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`white`: the mean squared distance of whitened rows, weighted."""
        prediction, target = (at_least_float32(self.projector(x)) for x in (pair.prediction, pair.target))
        with without_autocast(prediction):
            first, second = samples(prediction, self.over), samples(target, self.over)
            dealt = self._dealt(first, here.step_key)
            first, second = whitened(first[:, dealt], self.shrink), whitened(second[:, dealt], self.shrink)
            if self.normalise:
                return {"white": self.weight * (unit(first) - unit(second)).square().sum(-1).mean()}
            return {"white": self.weight * (first - second).square().mean()}

    def _dealt(self, like: Tensor, key: Key) -> Tensor:
        """(sub-batches, size): which rows of (groups, rows, D) are whitened together."""
        rows = like.shape[1]
        size = min(self.size or rows, rows)
        order = bits(Key(key.word.to(like.device)), "rows", (self.partitions, rows)).argsort(dim=1)
        return order[:, : rows - rows % size].reshape(-1, size)


def whitened(rows: Tensor, shrink: float) -> Tensor:
    """(..., R, D) -> rows of mean 0 and covariance I: (rows - mean) L^-T, where L L^T is the shrunk covariance (over R - 1)."""
    centred = rows.double() - rows.double().mean(-2, keepdim=True)
    covariance = centred.mT @ centred / max(1, rows.shape[-2] - 1)
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    ridge = shrink * variance + FLOOR * (1 + variance)
    identity = torch.eye(rows.shape[-1], dtype=centred.dtype, device=rows.device)
    factor = torch.linalg.cholesky_ex(
        (1 - shrink) * covariance + ridge * identity
    ).L  # which checks nothing: no device is waited for
    return torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT.to(rows.dtype)
