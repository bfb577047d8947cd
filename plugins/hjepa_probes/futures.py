"""The futures that a level with a latent variable predicts: do they differ, and does the true one lie among them?

Several rollouts of each sample, with z drawn from the prior, are read by one linear readout that was fitted on *encoded* states, as
the probe `regression` does it. The best of n beside their mean is how predictions of several futures are commonly scored (Babaeizadeh
et al. 2018, arXiv 1710.11252; Denton, Fergus 2018, arXiv 1802.07687).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hjepa.contracts import Count, Observer, Positive, Whole
from hjepa_probes.readout import Readout, aligned, fitted, picture, rmse, to_pixels

SHOWN = 6
"""Samples of a picture."""


class Futures:
    """Draws futures of test samples, reads a target from each, and asks the level's energy for the true future and for wrong ones.

    Options:
        level: the level that predicts. Without a latent it has one future only, which is then all there is to score.
        target: a key of the batch, as in `regression`.
        start: the last own step that is known.
        ahead: how many own steps are predicted; the last of them is scored.
        count: how many futures are drawn of each sample.
        ridge: of the readout, as in `regression`.

    Scores, errors as root mean squares in the target's unit: `best`, of the nearest of the futures; `mean`, of their mean;
    `without_z`, of the prediction with z = 0; `persistence`, of the last known state; `encoded`, of the state that came, which no
    prediction can beat by much; `spread`, how far futures lie from their mean; `coverage`, the share of samples whose nearest
    future is less than half as far from the truth as the mean of the futures is. And of the level's own energy at all steps:
    `energy` and `shuffled`, of true targets and of those of another sample, with z inferred for each; `gap`, their difference over
    the larger of `shuffled` and the energy of the trivial baseline.
    """

    def __init__(
        self,
        *,
        level: str,
        target: str,
        start: Whole = 0,
        ahead: Count = 1,
        count: Count = 16,
        ridge: Positive = 1e-3,
    ) -> None:
        self.level, self.target, self.ridge = level, target, ridge
        self.start, self.ahead, self.count = start, ahead, count

    def measure(self, observer: Observer) -> dict[str, float]:
        found = self._found(observer)
        truth, futures = found.truth[:, -1], found.futures[:, :, -1]
        middle = futures.mean(dim=1)
        near = (futures - truth[:, None]).square().sum(dim=-1).amin(dim=1)
        scores = {
            "best": float((near.mean() / truth.shape[-1]).sqrt()),
            "mean": rmse(middle, truth),
            "without_z": rmse(found.without[:, -1], truth),
            "persistence": rmse(found.known, truth),
            "encoded": rmse(found.encoded, truth),
            "spread": rmse(futures, middle[:, None]),
            "coverage": float((4 * near < (middle - truth).square().sum(dim=-1)).double().mean()),
        }
        return scores | self._energies(observer)

    def _energies(self, observer: Observer) -> dict[str, float]:
        energies = {name: float(values.mean()) for name, values in observer.energies(self.level, "test").items()}
        if "shuffled" not in energies:
            return {"energy": energies["energy"]}
        scale = max(energies["shuffled"], energies["trivial"])
        gap = (energies["shuffled"] - energies["energy"]) / scale if scale > 0 else 0.0
        return {"energy": energies["energy"], "shuffled": energies["shuffled"], "gap": gap}

    def _found(self, observer: Observer) -> Found:
        test, train = observer.observe(self.level, "test"), observer.observe(self.level, "train")
        end = self.start + self.ahead
        if end >= test.states.steps:
            raise ValueError(
                f"{self.level} has {test.states.steps} own steps a sample: {self.ahead} after {self.start} are too many"
            )
        readout = fitted(train.states.tokens, aligned(train, self.target), self.ridge)
        without = readout(observer.predict(self.level, "test", self.start, self.ahead).tokens)
        truth = aligned(test, self.target)
        return Found(
            truth=truth[:, self.start + 1 : end + 1],
            past=truth[:, : self.start + 1],
            futures=self._futures(observer, readout) if observer.spec(self.level).latent else without[:, None],
            without=without,
            known=readout(test.states.tokens[:, self.start]),
            encoded=readout(test.states.tokens[:, end]),
            time=test.states.time[:, : end + 1],
        )

    def _futures(self, observer: Observer, readout: Readout) -> Tensor:
        rolled = observer.predict(self.level, "test", self.start, self.ahead, self.count)
        read = readout(rolled.tokens)
        return read.view(-1, self.count, *read.shape[1:])

    def draw(self, observer: Observer, figure: Any) -> None:
        """The futures of some test samples fan out over the true one; on the last known frame where positions lie in frames."""
        found, frames = self._found(observer), observer.observe(self.level, "test").batch.get("frames")
        figure.suptitle(
            f"{self.target}: {self.count} futures of {self.level}, {self.ahead} own steps ahead", x=0.04, ha="left", fontsize=11
        )
        place = None if frames is None else to_pixels(frames, found.time, torch.cat([found.past, found.truth], dim=1))
        axes = figure.subplots(1, min(SHOWN, len(found.truth)), squeeze=False, gridspec_kw={"wspace": 0.06})[0]
        for sample, axis in enumerate(axes):
            if frames is not None and place is not None:
                picture(axis, frames[sample, int(found.time[sample, self.start])], frames[sample])
            else:
                axis.set(aspect="equal", xticks=[], yticks=[])
            _fan(axis, found, sample, torch.tensor([[1.0, 1.0], [0.0, 0.0]]).double() if place is None else place)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper right", ncols=len(labels), frameon=False, fontsize=8.5)


@dataclass(frozen=True)
class Found:
    """What was read of each test sample, and what is true. K steps are predicted, P numbers are read of each."""

    truth: Tensor
    """(n, K, P)."""
    past: Tensor
    """(n, start + 1, P): what is true up to the start."""
    futures: Tensor
    """(n, count, K, P)."""
    without: Tensor
    """(n, K, P): with z = 0."""
    known: Tensor
    """(n, P): read from the last known state."""
    encoded: Tensor
    """(n, P): read from the state that came at the last step."""
    time: Tensor
    """(n, start + 1 + K): base ticks."""


def _fan(axis: Any, found: Found, sample: int, place: Tensor) -> None:
    """The ways of one sample, in the plane of the target's first two numbers, or over time where it is one number."""

    def way(values: Tensor) -> Any:
        """From the last known point through values (K, P) -> x and y."""
        path = torch.cat([found.past[sample, -1:], values])
        if path.shape[1] == 1:
            return found.time[sample, -len(path) :].double(), path[:, 0]
        return (place[0] * path[:, :2] + place[1]).T

    for number, future in enumerate(found.futures[sample]):
        label = "drawn futures" if number == 0 else None
        axis.plot(*way(future), "-o", color="#ff7043", linewidth=0.8, markersize=2.5, alpha=0.6, label=label)
    axis.plot(*way(found.without[sample]), "--", color="#8ab6ff", linewidth=1.4, label="with z = 0")
    axis.plot(*way(found.truth[sample]), "-o", color="#35c2a0", linewidth=2, markersize=4, label="what came")
    axis.plot(*way(found.truth[sample, :0]), "s", color="0.6", markersize=5, label="last known")
