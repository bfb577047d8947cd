"""What probes of a class label share: the frozen features of a split beside their labels, and a picture of what was confused.

n samples    P features of a sample
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hjepa.contracts import Observation, Observer
from hjepa.errors import Mistake, listed, nearest
from hjepa_probes.readout import Features, Tokens, pooled

Step = Literal["last", "mean"]
"""Which step's tokens are read: the last one's, or the mean over all."""


@dataclass(frozen=True)
class Labelled:
    """Features of training and of test samples, standardised by the training samples alone, and their labels."""

    train: Tensor
    """(n, P) float64."""
    train_labels: Tensor
    """(n,) int64."""
    test: Tensor
    test_labels: Tensor

    @property
    def chance(self) -> float:
        """What naming the commonest training label every time would score on the test samples."""
        return chance(self.train_labels, self.test_labels)


def labelled(
    observer: Observer, level: str, target: str, features: Features, tokens: Tokens, step: Step, shots: int
) -> Labelled:
    """What a probe is fitted on and scored on; `shots` training samples of each class, 0 for all."""
    train, test = (observer.observe(level, split, features) for split in ("train", "test"))
    known = labels_of(train, target)
    chosen = torch.arange(len(known)) if shots == 0 else _first_of_each(known, shots, target)
    x, y = (_read(seen, tokens, step) for seen in (train, test))
    mean, scale = standard(x[chosen])
    return Labelled((x[chosen] - mean) * scale, known[chosen], (y - mean) * scale, labels_of(test, target))


def _read(seen: Observation, tokens: Tokens, step: Step) -> Tensor:
    """(n, P) float64: the tokens of the last step, or their mean over steps."""
    read = pooled(seen.states, tokens).double()
    return (read[:, -1] if step == "last" else read.mean(dim=1)).flatten(1)


def standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation (P,) of x (n, P), 0 for features that are constant up to the rounding of float32."""
    mean, deviation = x.mean(0), x.std(0, correction=0)
    rounding = torch.finfo(torch.float32).eps * mean.abs()
    return mean, torch.where(deviation > rounding, 1 / deviation, 0.0)


def labels_of(seen: Observation, name: str) -> Tensor:
    """(n,) int64. Mistake where that is no class label of a sample, or one class is all there is."""
    if name not in seen.batch:
        raise Mistake(f"the batch has no {name!r} to tell; it has {listed(sorted(seen.batch))}{nearest(name, seen.batch)}")
    label = seen.batch[name]
    if label.is_floating_point():
        raise Mistake(f"{name!r} holds {str(label.dtype).removeprefix('torch.')} numbers; a class label is a whole number")
    if label.flatten(1 if label.ndim > 1 else 0).shape[1:].numel() != 1:
        raise Mistake(f"{name!r} is {tuple(label.shape)}; one label a sample is needed, ({len(label)},)")
    label = label.flatten().long()
    if label.min() < 0:
        raise Mistake(f"{name!r} holds {int(label.min())}; classes are numbered from 0")
    if (label == label[0]).all():
        raise Mistake(f"{name!r} is {int(label[0])} for all {len(label)} samples; at least two classes are needed to tell them")
    return label


def _first_of_each(labels: Tensor, shots: int, target: str) -> Tensor:
    """Where the first `shots` samples of each class are."""
    found = [(labels == one).nonzero()[:shots, 0] for one in torch.unique(labels)]
    fewest = min(len(rows) for rows in found)
    if fewest < shots:
        raise Mistake(
            f"{shots} shots are asked for, and a class of {target!r} has only {fewest} among the training samples; "
            "raise evaluate.samples"
        )
    return torch.cat(found)


def chance(train: Tensor, test: Tensor) -> float:
    """What naming the commonest training label every time scores."""
    return accuracy(train.bincount().argmax(), test)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The share of samples that are named right."""
    return float((predicted == labels).double().mean())


def draw_confusion(figure: Any, predicted: Tensor, labels: Tensor, title: str) -> None:
    """Into a matplotlib figure: row by row, what the samples of each class were taken for, as a share."""
    count = int(torch.cat([predicted, labels]).max()) + 1
    matrix = torch.bincount(labels * count + predicted, minlength=count**2).view(count, count).double()
    matrix = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    figure.suptitle(title, x=0.04, ha="left", fontsize=11)
    axis = figure.subplots()
    axis.imshow(matrix.numpy(), cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="taken for", ylabel="class", xticks=range(count), yticks=range(count))
    axis.tick_params(labelsize=8, colors="0.5")
    for row in range(count if count <= 12 else 0):
        for column in range(count):
            share = float(matrix[row, column])
            colour = "white" if share > 0.5 else "0.3"
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
