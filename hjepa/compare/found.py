"""What a sweep found: its history, which parameters matter, all of its trials at once, and the front of several objectives.

Colour is what became of a trial, so that a good score of a collapsed one is seen for what it is. Importances and fronts are
Optuna's; of trials that have ended and have every objective.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from hjepa.compare.digest import Digest, short_keys
from hjepa.compare.overlay import figure_of, sampled
from hjepa.report import FAINT, INK, panel
from hjepa.verdicts import VERDICT_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from optuna import Study

DECADES = 30.0
"""A parameter whose largest value is so many times its smallest is drawn on a logarithmic axis."""
WEIGHED = 500
"""Trials that importances are taken from, evenly chosen: more cost time and change nothing."""

Objectives = Mapping[str, Literal["maximize", "minimize"]]
"""Metric -> `maximize` or `minimize`."""


def drawings(runs: Sequence[Digest], objectives: Objectives) -> dict[str, Figure]:
    """Title -> figure, for whatever can be drawn of these trials."""
    figures = {}
    if any(scores(run, objectives) for run in runs):
        figures["history"] = history(runs, objectives)
        importances = weights(runs, objectives)
        if importances:
            figures["importances"] = bars(importances)
        if len(objectives) > 1:
            figures["pareto front"] = front(runs, objectives)
    if any(run.params for run in runs):
        figures["parallel coordinates"] = parallel(runs, objectives)
    return figures


def scores(run: Digest, objectives: Objectives) -> list[float]:
    """The values of a trial that has ended and has all of them, else none."""
    values = [run.metrics.get(metric, math.nan) for metric in objectives]
    return values if run.state == "done" and all(map(math.isfinite, values)) else []


def history(runs: Sequence[Digest], objectives: Objectives) -> Figure:
    """Every objective by trial, and the best so far."""
    figure = figure_of(10, 3.4 * len(objectives))
    rows = figure.subplots(len(objectives), 1, squeeze=False)[:, 0]
    for place, ((metric, direction), axes) in enumerate(zip(objectives.items(), rows, strict=True)):
        panel(axes, f"{metric} ({direction})", "trial")
        told = [(number, run, values[place]) for number, run in enumerate(runs) if (values := scores(run, objectives))]
        best = list(accumulate((value for *_, value in told), max if direction == "maximize" else min))
        axes.step([number for number, *_ in told], best, where="post", color=FAINT, linewidth=1.4, zorder=1)
        _dots(axes, told, [number for number, *_ in told], [value for *_, value in told])
        without = [(number, run) for number, run in enumerate(runs) if not scores(run, objectives)]
        colours = [VERDICT_COLOURS[run.kind] for _, run in without]
        axes.scatter(
            [n for n, _ in without], [0.02] * len(without), c=colours, marker="|", s=40, transform=axes.get_xaxis_transform()
        )
    return figure


def _dots(axes: Axes, told: Sequence[tuple[int, Digest, float]], x: Sequence[float], y: Sequence[float]) -> None:
    colours = [VERDICT_COLOURS[run.kind] for _, run, _ in told]
    many = len(told) > 500
    axes.scatter(x, y, c=colours, s=8 if many else 26, alpha=0.5 if many else 0.9, linewidth=0, zorder=2, rasterized=many)


def weights(runs: Sequence[Digest], objectives: Objectives) -> dict[str, float]:
    """How much of the differences between trials each parameter explains, by Optuna; nothing where too few trials say."""
    from optuna.importance import get_param_importances

    chosen = [run for run in runs if scores(run, objectives) and run.params]
    study = _study(chosen[:: math.ceil(len(chosen) / WEIGHED) or 1], objectives)
    sign = -1 if next(iter(objectives.values())) == "maximize" else 1  # Optuna weighs what makes the target low
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says what the sign is for
            found = get_param_importances(study, target=lambda trial: sign * trial.values[0])
    except (RuntimeError, ValueError):
        return {}
    return dict(found) if all(map(math.isfinite, found.values())) else {}


def _study(runs: Sequence[Digest], objectives: Objectives) -> Study:
    """The trials as a study of Optuna that lives in memory alone."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=list(objectives.values()))
    columns = {key: [run.params[key] for run in runs if key in run.params] for run in runs for key in run.params}
    spaces = {key: _space(values) for key, values in columns.items()}
    made = [
        optuna.trial.create_trial(
            params=run.params, distributions={key: spaces[key] for key in run.params}, values=scores(run, objectives)
        )
        for run in runs
    ]
    study.add_trials(made)
    return study


def _space(values: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(map(_is_number, values)):
        return FloatDistribution(min(values), max(values), log=_spans_decades(values))
    return CategoricalDistribution(list(dict.fromkeys(values)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > DECADES


def bars(importances: Mapping[str, float]) -> Figure:
    """Parameters by importance."""
    names = short_keys(list(importances))
    figure = figure_of(10, 0.9 + 0.36 * len(importances))
    axes = figure.subplots()
    panel(axes, "importance of the parameters", "share of the differences between trials")
    axes.grid(False)
    order = sorted(importances, key=lambda key: importances[key])
    bars = axes.barh([names[key] for key in order], [importances[key] for key in order], color="#6b7a8f", height=0.62)
    axes.bar_label(bars, fmt=lambda value: f" {100 * value:.0f} %", fontsize=9, color=INK)
    axes.tick_params(axis="y", colors=INK, length=0)
    return figure


def front(runs: Sequence[Digest], objectives: Objectives) -> Figure:
    """The first two objectives against each other, and the trials that no other one beats in both."""
    (first, second), figure = list(objectives)[:2], figure_of(7, 5)
    axes = figure.subplots()
    panel(axes, f"{second} ({objectives[second]})", f"{first} ({objectives[first]})")
    pair = {first: objectives[first], second: objectives[second]}
    told = [(number, run, 0.0) for number, run in enumerate(runs) if scores(run, pair)]
    best = sorted(tuple(trial.values) for trial in _study([run for _, run, _ in told], pair).best_trials)
    axes.plot(*zip(*best, strict=True), color=FAINT, linewidth=1.4, zorder=1)
    _dots(axes, told, *zip(*(scores(run, pair) for _, run, _ in told), strict=True))
    return figure


def parallel(runs: Sequence[Digest], objectives: Objectives) -> Figure:
    """A line a trial, through what it was told and what came of it."""
    places = sampled(runs)
    told = [runs[place].params | dict(zip(objectives, scores(runs[place], objectives), strict=False)) for place in places]
    keys = [*dict.fromkeys(key for place in places for key in runs[place].params), *objectives]
    columns = {key: [row.get(key) for row in told] for key in keys if any(key in row for row in told)}
    names = short_keys([key for key in columns if key not in objectives])
    figure = figure_of(max(8.0, 2.1 * len(columns)), 4.6)
    axes = figure.subplots()
    axes.set_axis_off()
    heights = [_column(axes, x, names.get(key, key), values) for x, (key, values) in enumerate(columns.items())]
    axes.set_ylim(-0.08, 1.16)
    _lines(axes, runs, places, heights)
    return figure


def _column(axes: Axes, x: int, title: str, values: Sequence[Any]) -> list[float]:
    """One upright axis with its marks, and how high each value stands on it; nan where there is none."""
    known = [value for value in values if value is not None]
    if all(map(_is_number, known)):
        scale = math.log if _spans_decades(known) else float
        low, high = scale(min(known)), scale(max(known))
        span = high - low or 1.0
        height = {value: (scale(value) - low) / span if high > low else 0.5 for value in known}
        marks = {f"{value:.3g}": height[value] for value in (min(known), max(known))}
    else:
        labels = sorted({str(value) for value in known})
        at = {label: place / (len(labels) - 1) if len(labels) > 1 else 0.5 for place, label in enumerate(labels)}
        height = {value: at[str(value)] for value in known}
        marks = at
    axes.plot([x, x], [0, 1], color="#c8c8c8", linewidth=1, zorder=0)
    axes.text(x, 1.1, title, ha="center", fontsize=9.5, color=INK)
    for label, y in marks.items():
        axes.text(
            x + 0.02, y, label, fontsize=8.5, color=INK, va="center", zorder=5, bbox={"color": "white", "alpha": 0.75, "pad": 1}
        )
    return [math.nan if value is None else height[value] for value in values]


def _lines(axes: Axes, runs: Sequence[Digest], places: Sequence[int], heights: Sequence[Sequence[float]]) -> None:
    kinds = list(VERDICT_COLOURS)
    alpha = 0.85 if len(places) <= 30 else 0.45 if len(places) <= 120 else 0.25
    for row in sorted(range(len(places)), key=lambda row: -kinds.index(runs[places[row]].kind)):
        run = runs[places[row]]
        y = [column[row] for column in heights]
        (line,) = axes.plot(range(len(y)), y, color=VERDICT_COLOURS[run.kind], linewidth=1.2, alpha=alpha)
        line.set_gid(f"run-{places[row]}-parallel")
