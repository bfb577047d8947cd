"""VICReg (arXiv 2105.04906, equations 1 to 6): every dimension varies, no two of them together, and two views agree."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hjepa.contracts import Count, Here, NonNegative, Pair, Positive, Spec
from hjepa.nn.projector import projector as make_projector
from hjepa.nn.statistics import Over, at_least_float32, row_mean, samples, without_autocast


class Vicreg(nn.Module):
    """A hinge on the standard deviation of each dimension, and the squared covariances of all pairs of dimensions.

    Together they prevent complete and dimensional collapse. The hinge alone keeps the spread and lets every dimension say the
    same; the covariances alone are minimised by collapse. Both look at the embeddings only: what is spread may still be noise, or
    the slowest feature of the input. Embeddings that are exactly equal have equal gradients and are never parted.

    The defaults are those of EB-JEPA on video (arXiv 2602.03604). The paper's 25, 25, 1 are, over an energy of weight 1,
    `std: 1, cov: 0.04, covariance_by: dimension` for each of two views; with a projector `inv: 25, std: 25, cov: 1` over an
    energy of weight 0. PLDM's code has `over: batch, covariance_by: pair`.

    inv: weight of the mean squared distance of prediction and target behind the projector; 0 leaves it out. Alone it is
        minimised by collapse.
    std: weight of the hinge; 0 leaves it out.
    cov: weight of the covariances; 0 leaves them out.
    gamma: the standard deviation that each dimension shall have at least.
    epsilon: added to each variance before its root, which has no gradient at 0.
    over: the samples of one statistic: `all` rows, each `step` by itself, the first step of the `batch`, or the steps of each
        token in `time`; the mean over statistics counts.
    covariance_by: what the sum of squared covariances is divided by: the number of `pair`s D(D-1), or the `dimension` D (then
        the same weight is D-1 times as strong).
    projector: widths of a perceptron that the embeddings go through first.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        inv: NonNegative = 0.0,
        std: NonNegative = 10.0,
        cov: NonNegative = 100.0,
        gamma: Positive = 1.0,
        epsilon: Positive = 1e-4,
        over: Over = "all",
        covariance_by: Literal["dimension", "pair"] = "pair",
        projector: tuple[Count, ...] = (),
    ) -> None:
        super().__init__()
        self.inv, self.std, self.cov, self.gamma, self.epsilon = inv, std, cov, gamma, epsilon
        self.over, self.covariance_by = over, covariance_by
        self.projector = make_projector(spec.width, projector)

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`inv`, `std` and `cov`, weighted."""
        embedding = at_least_float32(self.projector(pair.embedding))
        with without_autocast(embedding):
            rows = samples(embedding, self.over)
            centred = rows - rows.mean(1, keepdim=True)
            squares, freedom = centred.square().sum(1), max(1, rows.shape[1] - 1)
            terms = {}
            if self.inv:
                terms["inv"] = self.inv * row_mean(self._squared_distance(pair))
            if self.std:
                terms["std"] = self.std * (self.gamma - (squares / freedom + self.epsilon).sqrt()).relu().mean()
            if self.cov:
                terms["cov"] = self.cov * (self._off_diagonal(centred, squares) / freedom**2).mean()
            return terms

    def _squared_distance(self, pair: Pair) -> Tensor:
        """(..., D) behind the projector."""
        prediction, target = (at_least_float32(self.projector(x)) for x in (pair.prediction, pair.target))
        return (prediction - target).square()

    def _off_diagonal(self, centred: Tensor, squares: Tensor) -> Tensor:
        """(groups,): the squared entries of X'X off its diagonal, from all of them less those on it."""
        width = centred.shape[2]
        count = width if self.covariance_by == "dimension" else max(1, width * (width - 1))
        everywhere: Tensor = _SquaredGram.apply(centred)  # type: ignore[no-untyped-call]
        return (everywhere - squares.square().sum(1)) / count


class _SquaredGram(torch.autograd.Function):
    """(groups, rows, D) -> (groups,): the sum of the squared entries of X'X.

    XX' has the same sum: the smaller of the two is made. The gradient is 4 X X'X, one matrix product where autograd takes two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gram = x @ x.mT if x.shape[1] < x.shape[2] else x.mT @ x
        ctx.save_for_backward(x, gram)
        return gram.square().sum((1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, gram = ctx.saved_tensors
        with without_autocast(x):
            product = gram @ x if x.shape[1] < x.shape[2] else x @ gram
        return 4 * gradient[:, None, None] * product
