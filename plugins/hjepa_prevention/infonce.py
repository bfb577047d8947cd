"""InfoNCE (CPC, arXiv 1807.03748, equation 4): a prediction is nearer to its own target than to those of other rows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Here, NonNegative, Pair, Positive, Spec, Whole
from hjepa.nn.projector import projected
from hjepa.nn.projector import projector as make_projector
from hjepa.nn.statistics import Over, at_least_float32, samples, unit, without_autocast


class Infonce(nn.Module):
    """The cross-entropy of finding the own target among N by the cosine: 0 at best, log N where everything has collapsed.

    A whole objective: the level's own energy may have weight 0. It prevents complete collapse, as equal states are told apart by
    luck alone. It prevents dimensional collapse only as far as telling N rows apart needs dimensions, and the length of a state
    not at all. What it says of mutual information never exceeds log N. All pairs of rows of a statistic are compared at once.

    weight: of the term.
    temperature: of the softmax: 0.07 in MoCo (arXiv 1911.05722), 0.1 to 0.5 in SimCLR (arXiv 2002.05709).
    negatives: `targets` of the other rows (CPC, MoCo), or `both` the predictions and the targets of the other rows, as in the
        NT-Xent of SimCLR, which is log(2N - 1) where everything has collapsed.
    symmetric: also find the prediction among all predictions, given the target, and take the mean (SimCLR, MoCo v3).
    queue: how many targets of earlier steps are negatives as well (MoCo has 65536), 0 for none. They age: take targets of `ema`.
    over: the rows among which a target is found: `all`, so that other steps of the same sample are negatives too; those of the
        same `step`; those of the first step, `batch`; or the steps of the same token, `time`. The mean over statistics counts.
    projector: widths of a perceptron that predictions and targets go through first.
    """

    queue: Tensor
    pushed: Tensor

    def __init__(
        self,
        spec: Spec,
        *,
        weight: NonNegative = 1.0,
        temperature: Positive = 0.1,
        negatives: Literal["targets", "both"] = "targets",
        symmetric: bool = False,
        queue: Whole = 0,
        over: Over = "all",
        projector: tuple[Count, ...] = (),
    ) -> None:
        super().__init__()
        if queue and over == "time":
            raise ValueError(
                "a queue holds targets of other samples, and `over: time` compares the steps of one: leave one out"
            )
        self.weight, self.temperature, self.negatives, self.symmetric = weight, temperature, negatives, symmetric
        self.size, self.over = queue, over
        self.projector = make_projector(spec.width, projector)
        self.register_buffer("queue", torch.zeros(queue, projected(spec.width, projector)))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self._newest: list[Tensor] = []

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`contrast`: the mean cross-entropy, weighted."""
        prediction, target = (at_least_float32(self.projector(x)) for x in (pair.prediction, pair.target))
        with without_autocast(prediction):
            own, right = unit(samples(prediction, self.over)), unit(samples(target, self.over))
            if self.training and self.size:
                self._newest.append(right.detach().flatten(0, 1))
            near = self._near(own, right)
            entropy = _missed(near, [*self._beside(own), self._waiting(own)])
            if self.symmetric:
                entropy = (entropy + _missed(near.mT, self._beside(right))) / 2
            return {"contrast": self.weight * entropy}

    def after_step(self, step: int) -> None:
        """The targets of this step take the places of the oldest."""
        if self._newest:
            newest = torch.cat(self._newest)[-self.size :]
            places = (self.pushed + torch.arange(len(newest), device=self.pushed.device)) % self.size
            self.queue[places] = newest.to(self.queue.dtype)
            self.pushed += len(newest)
            self._newest = []

    def _near(self, rows: Tensor, others: Tensor) -> Tensor:
        """(groups, R, D) and (..., S, D) -> (groups, R, S)."""
        return rows @ others.mT / self.temperature

    def _beside(self, rows: Tensor) -> list[Tensor]:
        """How near the rows of one side are to each other, where they are negatives; none is a negative of itself."""
        if self.negatives == "targets":
            return []
        itself = torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
        return [self._near(rows, rows).masked_fill(itself, -torch.inf)]

    def _waiting(self, rows: Tensor) -> Tensor:
        """How near the queue is, as far as it is filled."""
        empty = torch.arange(self.size, device=rows.device) >= self.pushed
        return self._near(rows, self.queue.to(rows.dtype)).masked_fill(empty, -torch.inf)


def _missed(near: Tensor, further: list[Tensor]) -> Tensor:
    """-log of the share that the diagonal of `near` has among all columns, mean over rows."""
    found = torch.cat((near, *further), dim=-1).log_softmax(dim=-1)
    return -found.diagonal(dim1=1, dim2=2).mean()
