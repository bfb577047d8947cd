"""Multinomial logistic regression from frozen states to a class label: the linear probe (Alain & Bengio 2016, arXiv:1610.01644)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hjepa.contracts import Observer, Positive, Whole
from hjepa_probes.classes import Labelled, Step, accuracy, draw_confusion, labelled
from hjepa_probes.readout import Features, Tokens

ITERATIONS = 1000
"""Of L-BFGS; a problem of some thousand samples needs a few hundred at most."""


class Linear:
    """Reads a class from the standardised tokens of a step.

    Options:
        level: the level whose states are read.
        target: a key of the batch, with one whole number a sample.
        features: of the level as it is (`online`), or of its teacher (`target`).
        tokens: the `mean` of a step's tokens, or all of them side by side (`flat`).
        step: the `last` one, or the `mean` over all.
        shots: so many training samples of each class, the first ones; 0 takes all.
        ridge: weight of half the squared coefficients, beside the mean cross-entropy.

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
        ridge: Positive = 1e-3,
    ) -> None:
        self.level, self.target, self.features, self.tokens = level, target, features, tokens
        self.step, self.shots, self.ridge = step, shots, ridge

    def measure(self, observer: Observer) -> dict[str, float]:
        data = self._data(observer)
        return {"accuracy": accuracy(self._predicted(data), data.test_labels), "chance": data.chance}

    def draw(self, observer: Observer, figure: Any) -> None:
        """The confusion matrix. `figure`: a matplotlib figure or subfigure."""
        data = self._data(observer)
        predicted = self._predicted(data)
        title = f"{self.target}, read from {self.level}: {100 * accuracy(predicted, data.test_labels):.0f} % right"
        draw_confusion(figure, predicted, data.test_labels, title)

    def _data(self, observer: Observer) -> Labelled:
        return labelled(observer, self.level, self.target, self.features, self.tokens, self.step, self.shots)

    def _predicted(self, data: Labelled) -> Tensor:
        """(n,): the class of each test sample."""
        from sklearn.linear_model import LogisticRegression

        reader = LogisticRegression(C=1 / (self.ridge * len(data.train)), max_iter=ITERATIONS)
        reader.fit(data.train.numpy(), data.train_labels.numpy())
        return torch.from_numpy(reader.predict(data.test.numpy()))
