"""Ridge regression from a level's states to a quantity of its batch, now or some own steps ahead.

Linear regression on frozen, standardised features (the ridge: Hoerl, Kennard 1970). One rule for all scores: the readout
is fitted on *encoded* training states, and then applied to encoded or predicted test states alike. So a prediction is scored
by what the level itself would read from it, and no readout can repair a bad one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hjepa.contracts import Observation, Observer, Positive, States, Whole
from hjepa_probes.readout import Features, Readout, Tokens, aligned, fitted, picture, pooled, r2, rmse, to_pixels, told

SHOWN = 8
"""Frames of a filmstrip."""


class Regression:
    """Reads a target from the tokens of each step, in closed form.

    Options:
        level: the level whose states are read.
        target: a key of the batch. Its axis 1 is time where it is as long as axis 1 of `frames` (without `frames`: as long as
            there are ticks); the target is then taken at each state's own tick. Without a time axis it is the same at every
            step. All other axes are flattened.
        features: readouts are fitted on states of the level as it is (`online`), or of its teacher (`target`), which is what
            predictions are trained to be like.
        tokens: all of a step's tokens side by side (`flat`), as where something is may be said by which token says it; or
            their `mean`.
        ahead: own steps between the last state that is known and the one that is read; 0 reads encoded states.
        only: a key of the batch, of truth values: only those states are scored on the way to which it was true, at any tick after that
            of the last state that is known, up to their own; with `ahead` 0 at their own tick. All where it is left out.
        against: other levels that predict the same ticks from the same starts, each read by its own readout.
        ridge: weight of the squared coefficients, beside a mean squared error of standardised features.

    Scores: `r2`, the mean over target dimensions of 1 - SSE/SST with the test mean in SST (dimensions that never vary are left
    out), and `error`, the root mean squared error in the target's unit. With `ahead`, by the same rule and for every start:
    `r2_persistence`, the readout of the last known state; `r2_<label>`, each level of `against`; and as an upper bound
    `r2_encoded`, the readout of the state that was predicted, had it been seen. And `doubt`, where the level says how far apart
    several predictors are about the states that are scored: the mean over their tokens.
    """

    def __init__(
        self,
        *,
        level: str,
        target: str,
        features: Features = "online",
        tokens: Tokens = "flat",
        ahead: Whole = 0,
        only: str | None = None,
        against: Sequence[str] = (),
        ridge: Positive = 1e-3,
    ) -> None:
        if against and not ahead:
            raise ValueError("against compares predictions, but ahead is 0, which reads encoded states")
        self.level, self.target, self.features, self.tokens = level, target, features, tokens
        self.ahead, self.only, self.against, self.ridge = ahead, only, against, ridge

    def measure(self, observer: Observer) -> dict[str, float]:
        found = self._found(observer)
        scored, truth, starts = found.scored, found.truth[found.scored], found.truth.shape[1]
        scores = {"r2": r2(found.predicted[scored], truth), "error": rmse(found.predicted[scored], truth)}
        if not self.ahead:
            return scores
        scores["r2_persistence"] = r2(found.encoded[:, :starts][scored], truth)
        scores["r2_encoded"] = r2(found.encoded[:, self.ahead :][scored], truth)
        if found.doubt is not None:
            scores["doubt"] = float(found.doubt[scored].mean())
        time = self._seen(observer, self.level, "test").states.time
        for label in self.against:
            there, clock = self._seen(observer, label, "test").states.time, observer.spec(label).clock
            ways = [way(label, there, clock, time[:, start], time[:, start + self.ahead]) for start in range(starts)]
            predicted = self._read(self._readout(observer, label), [last(observer, label, *each) for each in ways])
            scores[f"r2_{label}"] = r2(predicted[scored], truth)
        return scores

    def draw(self, observer: Observer, figure: Any) -> None:
        """One test sample as a filmstrip with true and read positions; if they fit no frames, true against read.

        `figure`: a matplotlib figure or subfigure.
        """
        found, frames = self._found(observer), self._seen(observer, self.level, "test").batch.get("frames")
        when = f"{self.ahead} own steps ahead" if self.ahead else "now"
        when += f", only {self.only}" if self.only else ""
        scored = r2(found.predicted[found.scored], found.truth[found.scored])
        title = f"{self.target} {when}, read from {self.level}: R² {scored:.2f}"
        figure.suptitle(title, x=0.04, ha="left", fontsize=11)
        place = None if frames is None else to_pixels(frames, found.time, found.truth)
        if frames is None or place is None:
            scatter(figure, found)
        else:
            filmstrip(figure, frames, found, place)

    def _found(self, observer: Observer) -> Found:
        test = self._seen(observer, self.level, "test")
        starts = test.states.steps - self.ahead
        if starts < 1:
            raise ValueError(
                f"{self.level} has {test.states.steps} own steps a sample, which is too few to look {self.ahead} ahead"
            )
        readout = self._readout(observer, self.level)
        encoded, truth = readout(pooled(test.states, self.tokens)), aligned(test, self.target)
        predicted, doubt = encoded, None
        if self.ahead:
            states = [last(observer, self.level, start, self.ahead) for start in range(starts)]
            predicted = self._read(readout, states)
            doubts = [each.doubt.mean(2) for each in states if each.doubt is not None]
            doubt = torch.cat(doubts, dim=1) if doubts else None
        time, scored = test.states.time[:, self.ahead :], self._scored(test, starts)
        return Found(truth[:, self.ahead :], predicted, encoded, time, scored, doubt)

    def _scored(self, test: Observation, starts: int) -> Tensor:
        """(n, starts) bool. ValueError where none would be left."""
        if self.only is None:
            return torch.ones(len(test.states.time), starts, dtype=torch.bool)
        true, time = (told(test, self.only) > 0).any(-1), test.states.time
        before = torch.nn.functional.pad(true.cumsum(1), (1, 0))  # how often it was true before each tick
        known = time[:, :starts] + min(1, self.ahead)
        scored = before.gather(1, time[:, self.ahead :] + 1) > before.gather(1, known)
        if not scored.any():
            raise ValueError(f"{self.only} is true nowhere in the samples that are tested, so there is nothing to score")
        return scored

    def _seen(self, observer: Observer, level: str, split: str) -> Observation:
        return observer.observe(level, split, self.features)

    def _readout(self, observer: Observer, level: str) -> Readout:
        train = self._seen(observer, level, "train")
        return fitted(pooled(train.states, self.tokens), aligned(train, self.target), self.ridge)

    def _read(self, readout: Readout, states: list[States]) -> Tensor:
        """(n, starts, P): what is read from states of one step each."""
        return torch.cat([readout(pooled(each, self.tokens)) for each in states], dim=1)


@dataclass(frozen=True)
class Found:
    """What was read, sample by sample, and what is true."""

    truth: Tensor
    """(n, starts, P)."""
    predicted: Tensor
    """(n, starts, P)."""
    encoded: Tensor
    """(n, T, P): what is read from every encoded state."""
    time: Tensor
    """(n, starts): base ticks."""
    scored: Tensor
    """(n, starts) bool."""
    doubt: Tensor | None
    """(n, starts), of what was predicted."""


def last(observer: Observer, label: str, start: int, steps: int) -> States:
    """(n, 1, N, D): the last of so many own steps that a level predicts of test samples, from own step `start` on."""
    return observer.predict(label, "test", start, steps).slice(steps - 1, steps)


def way(label: str, there: Tensor, clock: int, start: Tensor, stop: Tensor) -> tuple[int, int]:
    """The last own step of another level at or before tick `start`, and how many of its steps lead from there to tick `stop`.

    `there (n, T)`: that level's ticks; `start`, `stop (n,)`. ValueError where no whole number of steps leads there, or where it
    is not the same for all samples.
    """
    last = (there <= start[:, None]).sum(1) - 1
    if (last < 0).any():
        raise ValueError(f"{label} has no state yet at tick {int(start.min())}, where the prediction starts")
    ticks = stop - there.gather(1, last[:, None])[:, 0]
    if (ticks % clock).any():
        raise ValueError(
            f"{label} steps {clock} ticks at a time and never meets tick {int(stop[0])}, {int(ticks[0])} ticks ahead"
        )
    ways = set(zip(last.tolist(), (ticks // clock).tolist(), strict=True))
    if len(ways) > 1:
        raise ValueError(f"{label} would need different numbers of steps for different samples, because their ticks differ")
    return ways.pop()


# --- pictures --------------------------------------------------------------------------------------------------------


def filmstrip(figure: Any, frames: Tensor, found: Found, place: Tensor) -> None:
    """Frames of the first sample at up to SHOWN of the ticks, with both positions; further samples where they fit beside it."""
    count = found.time.shape[1]
    chosen = torch.linspace(0, count - 1, min(SHOWN, count)).round().long().tolist()
    shown = [(sample, at) for sample in range(min(SHOWN // len(chosen), len(frames))) for at in chosen]
    axes = figure.subplots(1, len(shown), squeeze=False, gridspec_kw={"wspace": 0.02})[0]
    for axis, (sample, at) in zip(axes, shown, strict=True):
        tick = int(found.time[sample, at])
        picture(axis, frames[sample, tick], frames[sample])
        true, read = ((place[0] * p[sample, at].reshape(-1, 2) + place[1]).T for p in (found.truth, found.predicted))
        axis.plot(
            *true, "o", markersize=13, markerfacecolor="none", markeredgecolor="#35c2a0", markeredgewidth=1.8, label="true"
        )
        axis.plot(*read, "x", markersize=8, markeredgecolor="#ff7043", markeredgewidth=2.2, label="read from the states")
        axis.set_xlabel(f"sample {sample}, tick {tick}", fontsize=8, color="0.5")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, frameon=False, fontsize=8.5, markerscale=0.7)


def scatter(figure: Any, found: Found) -> None:
    """True against read where it is scored, for the first few dimensions of the target."""
    for dimension, axis in enumerate(figure.subplots(1, 4)):
        if dimension >= found.truth.shape[-1]:
            axis.set_axis_off()
            continue
        true, read = (p[found.scored][:2000, dimension] for p in (found.truth, found.predicted))
        axis.axline((float(true.mean()), float(true.mean())), slope=1, color="0.7", linewidth=1, zorder=0)
        axis.plot(true, read, ".", markersize=2.5, alpha=0.4, color="#2a6f97")
        axis.set(xlabel=f"true, dimension {dimension}", ylabel="read" if dimension == 0 else "")
        axis.set_box_aspect(1)
        axis.tick_params(labelsize=8, colors="0.5")
        axis.spines[["top", "right"]].set_visible(False)
