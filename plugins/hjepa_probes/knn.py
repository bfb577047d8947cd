"""The classes of the nearest training samples (Wu et al. 2018, arXiv:1805.01978): nothing is fitted, so nothing can be repaired."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa.contracts import Count, Observer, Whole
from hjepa_probes.classes import Labelled, Step, accuracy, draw_confusion, labelled
from hjepa_probes.readout import Features, Tokens


class Knn:
    """Reads a class from the nearest training samples by cosine, over the standardised tokens of a step.

    Each neighbour votes by its cosine + 1, so that ties are rare; where fewer than k training samples are there, all of them vote.

    Options:
        level: the level whose states are read.
        target: a key of the batch, with one whole number a sample.
        features: of the level as it is (`online`), or of its teacher (`target`).
        tokens: the `mean` of a step's tokens, or all of them side by side (`flat`).
        step: the `last` one, or the `mean` over all.
        shots: so many training samples of each class, the first ones; 0 takes all.
        k: how many neighbours vote.

    Scores, of test samples: `accuracy`; `chance`, what naming the commonest training class scores.
    """

    def __init__(
        self,
        *,
        level: str,
        target: str,
        features: Features = "online",
        tokens: Tokens = "mean",
        step: Step = "last",
        shots: Whole = 0,
        k: Count = 5,
    ) -> None:
        self.level, self.target, self.features, self.tokens = level, target, features, tokens
        self.step, self.shots, self.k = step, shots, k

    def measure(self, observer: Observer) -> dict[str, float]:
        data = self._data(observer)
        return {"accuracy": accuracy(self._predicted(data), data.test_labels), "chance": data.chance}

    def draw(self, observer: Observer, figure: Any) -> None:
        """The confusion matrix. `figure`: a matplotlib figure or subfigure."""
        data = self._data(observer)
        predicted = self._predicted(data)
        right = f"{100 * accuracy(predicted, data.test_labels):.0f} % right"
        draw_confusion(figure, predicted, data.test_labels, f"{self.target}, by the nearest states of {self.level}: {right}")

    def _data(self, observer: Observer) -> Labelled:
        return labelled(observer, self.level, self.target, self.features, self.tokens, self.step, self.shots)

    def _predicted(self, data: Labelled) -> Tensor:
        """(n,): the class of each test sample."""
        cosine = F.normalize(data.test, dim=1) @ F.normalize(data.train, dim=1).T
        near = cosine.topk(min(self.k, cosine.shape[1]), dim=1)
        votes = torch.zeros(len(cosine), int(data.train_labels.max()) + 1, dtype=cosine.dtype)
        votes.scatter_add_(1, data.train_labels[near.indices], near.values + 1)
        return votes.argmax(dim=1)
