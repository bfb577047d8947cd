"""Many runs in one figure: a row a level, a curve a run, coloured by what became of that level in that run.

The drawings know runs as `Digest`s. A curve's `gid` is `run-N` with a suffix, N the run's place, so that a page can find it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from hjepa.collapse import SPREAD_LEFT
from hjepa.compare.digest import Curve, Digest
from hjepa.report import ALARM, FAINT, INK, logarithmic, panel
from hjepa.verdicts import VERDICT_COLOURS, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 200
"""Curves in a figure; of more runs, some of every kind are drawn."""
NAMED = 8
"""So many runs are named at the ends of their curves."""
RATIO_SHOWN = (1e-3, 10.0)
"""Energies over their baselines are shown within these, so that a dying one does not squeeze the others."""


def levels_of(runs: Sequence[Digest]) -> list[str]:
    """Every level that some run says something of, in the order of the studies."""
    return list(dict.fromkeys(level for run in runs for level in run.verdicts))


def sampled(runs: Sequence[Digest], most: int = MOST) -> list[int]:
    """The places of the runs to draw: all, or evenly chosen ones of each kind, the rare kinds in full first."""
    by_kind = defaultdict(list)
    for place, run in enumerate(runs):
        by_kind[run.kind].append(place)
    chosen: list[int] = []
    for rest, places in zip(range(len(by_kind), 0, -1), sorted(by_kind.values(), key=len), strict=True):
        share = (most - len(chosen)) // rest
        count = min(share, len(places))
        chosen += [places[number * len(places) // count] for number in range(count)]
    return sorted(chosen)


def figure_of(width: float, height: float) -> Figure:
    """An empty figure that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.09), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def curves(runs: Sequence[Digest], places: Sequence[int]) -> Figure:
    """Spread left, effective rank, energy over its baseline, and the last spectrum, of the runs at `places`."""
    from matplotlib.ticker import MaxNLocator

    levels = levels_of(runs) or [""]
    figure = figure_of(16, 0.2 + 3.5 * len(levels))
    rows = figure.subplots(len(levels), 4, squeeze=False)
    # What is wrong is drawn last, over what is well.
    order = sorted(places, key=lambda place: -list(VERDICT_COLOURS).index(runs[place].kind))
    for level, (spread, rank, energy, spectrum) in zip(levels, rows, strict=True):
        drawn = [(place, runs[place]) for place in order]
        _many(
            spread,
            f"{level}: spread left" if level else "spread left",
            level,
            [(p, r, r.curve(f"collapse/{level}/std_ratio")) for p, r in drawn],
        )
        _spread_axis(spread)
        _many(rank, "effective rank", level, [(p, r, r.curve(f"collapse/{level}/rank")) for p, r in drawn])
        rank.set_ylim(bottom=0)
        _many(energy, "energy over its trivial baseline", level, [(p, r, over_baseline(r, level)) for p, r in drawn])
        _energy_axis(energy)
        _many(spectrum, "spectrum at the end", level, [(p, r, _spectrum(r, level)) for p, r in drawn], "direction")
        logarithmic(spectrum)
        spectrum.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(drawn) <= NAMED:
            for axes in (spread, rank, energy):
                _name_ends(axes)
    return figure


def over_baseline(run: Digest, level: str) -> Curve:
    """What the predictions cost, over what the level's trivial baseline costs on the same samples."""
    energies, trivial = (dict(zip(*run.curve(f"collapse/{level}/{name}"), strict=True)) for name in ("energy", "trivial"))
    steps = [step for step in energies if trivial.get(step)]
    return steps, [energies[step] / trivial[step] for step in steps]


def _spectrum(run: Digest, level: str) -> Curve:
    values = run.spectra.get(level, [])
    return list(range(1, len(values) + 1)), [value if _positive(value) else math.nan for value in values]


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def _many(axes: Axes, title: str, level: str, drawn: Sequence[tuple[int, Digest, Curve]], below: str = "step") -> None:
    panel(axes, title, below)
    shown = len(drawn)
    width, alpha = (2.0, 0.95) if shown <= NAMED else (1.3, 0.75) if shown <= 60 else (0.8, 0.4)
    for place, run, (x, y) in drawn:
        colour = VERDICT_COLOURS[kind_of(run.verdicts.get(level, ""))]
        marker = "o" if len(x) == 1 else ""
        (line,) = axes.plot(x, y, color=colour, linewidth=width, alpha=alpha, marker=marker, label=run.name)
        line.set_gid(f"run-{place}-{axes.get_subplotspec().num1}")  # type: ignore[union-attr]


def _spread_axis(axes: Axes) -> None:
    logarithmic(axes)
    low, high = axes.get_ylim()
    low = max(min(low, SPREAD_LEFT / 4), 1e-5)
    axes.set_ylim(low, max(high, 2))
    axes.axhspan(low, SPREAD_LEFT, color=ALARM, alpha=0.06, linewidth=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def _energy_axis(axes: Axes) -> None:
    logarithmic(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, RATIO_SHOWN[0]), min(max(high, 1.2), RATIO_SHOWN[1]))
    axes.axhline(1, color=FAINT, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "125" else "")


def _name_ends(axes: Axes) -> None:
    """The name of each run at the end of its curve, moved apart where ends are near each other."""
    import numpy as np

    lines = [line for line in axes.get_lines() if line.get_gid() and len(line.get_xdata())]  # type: ignore[arg-type]
    ends = [(axes.transData.transform(np.asarray(line.get_xydata())[-1])[1], line) for line in lines]
    height, bottom = axes.bbox.height, axes.bbox.y0
    seats = _apart([min(1.0, max(0.0, (end - bottom) / height)) for end, _ in ends], 0.075)
    for seat, (_, line) in zip(seats, ends, strict=True):
        text = axes.text(1.02, seat, str(line.get_label()), transform=axes.transAxes, va="center", fontsize=8.5, color=INK)
        text.set_color(line.get_color())
        text.set_gid(f"{line.get_gid()}-name")


def _apart(seats: Sequence[float], gap: float) -> list[float]:
    """The same heights, at least `gap` from each other, moved as little as one pass up and one down need."""
    order = sorted(range(len(seats)), key=lambda place: seats[place])
    moved = list(seats)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    excess = max(0.0, max(moved, default=0.0) - 1)
    return [seat - excess for seat in moved]
