"""What success takes: the share of goals that each way to plan reached, against what it computed, as a picture.

Of what was learned that is counted in floating-point operations. Of the world itself these say nothing: how it comes to its next step is
its own affair. Where that is most of what plans, predicted steps stand for them; beside several models that were learned, it is a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hjepa.keys import ORACLE, PLANNED, THIRDS
from hjepa.report import COLOURS, FAINT, INK, panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Scores = Mapping[str, Mapping[str, float]]
"""Of each policy."""

LETTERS = 8.0
"""The size of a name, in points."""
AWAY = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 64.0, 84.0, 108.0)
"""How far from what it names a name may stand, in points, the nearest first."""
LED = 15.0
"""From here on a thin line leads there."""
AROUND = (0, 180, 45, -45, 135, -135, 20, -20, 160, -160, 70, -70, 110, -110, 90, -90)
"""In which direction, in degrees, the best first."""
BESIDE_LINE = (25, -25)
"""The same for the name of a line, which stands at its left end."""
MARKERS = "osD^v"
"""For as many policies each as there are colours."""
LEAST, MARGIN = 1.7, 0.15
"""By what the horizontal axis goes further than the points at either end: a factor at least, and a share of all between them."""


def picture(path: Path, scores: Scores, planning: Sequence[str], learned: Sequence[str]) -> Path:
    """Draws policies into the picture `path`, and returns `path`. `planning`: who plans; `learned`: who in what was learned."""
    drawn(scores, planning, learned).savefig(path)
    return path


def drawn(scores: Scores, planning: Sequence[str], learned: Sequence[str]) -> Figure:
    """A panel of all tasks, and one of each third of them by distance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    thirds = [name for name in THIRDS if all(name in scores[policy] for policy in planning)]
    figure = Figure(figsize=(12.5, 9.6 if thirds else 5), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2 if thirds else 1, max(1, len(thirds)), height_ratios=[1, 1][: 2 if thirds else 1])
    shown = {"success": figure.add_subplot(grid[0, :])}
    shown |= {name: figure.add_subplot(grid[1, place]) for place, name in enumerate(thirds)}
    spent, below, points = _axis(scores, planning, learned)
    for name, axes in shown.items():
        panel(axes, "Goals reached" if name == "success" else f"Goals reached: {name} third", below)
        _across(axes, [scores[policy][spent] for policy in points])
        _policies(axes, scores, name, spent, points)
    _name(figure, shown, scores, spent, points)
    return figure


def _axis(scores: Scores, planning: Sequence[str], learned: Sequence[str]) -> tuple[str, str, list[str]]:
    """Which score says what a policy computed, in words, and whose point it gives a place."""
    if len(learned) > 1 and all(scores[name]["gigaflop"] > 0 for name in learned):
        return "gigaflop", "GFLOP a task", list(learned)
    return "evaluations", "predicted steps a task", [name for name in planning if scores[name]["evaluations"] > 0]


def _across(axes: Axes, spent: Sequence[float]) -> None:
    """The horizontal axis, and how far both go."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = min(spent, default=1.0), max(spent, default=1.0)
    further = max(LEAST, (high / low) ** MARGIN)
    axes.set(xscale="log", xlim=(low / further, high * further), ylim=(-0.05, 1.12))
    fine = high / low * further**2 < 100
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if fine else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _policies(axes: Axes, scores: Scores, name: str, spent: str, points: Sequence[str]) -> None:
    """A point with its interval, or a line for who computes nothing that can be compared."""
    for policy, of in scores.items():
        if policy in points:
            share, low, high = _share(of, name)
            ends = ([share - low], [high - share])
            colour, marker = _look(policy, points)
            axes.errorbar(of[spent], share, yerr=ends, fmt=marker, color=colour, markersize=5.5, elinewidth=1, capsize=2)
        elif name in of:
            axes.axhline(of[name], color=FAINT, linewidth=0.8, linestyle=(0, (4, 2)), alpha=0.8, zorder=1)


def _share(of: Mapping[str, float], name: str) -> tuple[float, float, float]:
    """Of the goals, and its interval."""
    before = "" if name == "success" else f"{name}_"
    return of[name], of[f"{before}low"], of[f"{before}high"]


def _look(policy: str, points: Sequence[str]) -> tuple[str, str]:
    """Its colour, and the shape of its point. The main ones are black, lines grey."""
    others = [name for name in points if name not in (ORACLE, PLANNED)]
    if policy not in others:
        return (INK if policy in points else FAINT), "o"
    turn, place = divmod(others.index(policy), len(COLOURS))
    return COLOURS[place], MARKERS[turn % len(MARKERS)]


# --- names ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def shared(self, other: Box) -> float:
        """How much of the two is the same."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def size(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)


def _name(figure: Figure, shown: Mapping[str, Axes], scores: Scores, spent: str, points: Sequence[str]) -> None:
    """Writes who is who beside points and lines, where there is room for it."""
    figure.draw_without_rendering()  # the panels have their places then
    for name, axes in shown.items():
        left, _ = axes.get_xlim()
        there = {policy: (of[spent] if policy in points else left, of[name]) for policy, of in scores.items() if name in of}
        taken = [box for policy in points for box in _covered(axes, there[policy][0], _share(scores[policy], name))]
        for policy in sorted(there, key=lambda one: one in points):
            box, offset = _seat(axes, policy, there[policy], taken, AROUND if policy in points else BESIDE_LINE)
            taken.append(box)
            _write(axes, policy, there[policy], offset, _look(policy, points)[0])


def _covered(axes: Axes, spent: float, share: tuple[float, float, float]) -> Iterator[Box]:
    """What a point and its interval cover."""
    across, up = axes.transData.transform((spent, share[0]))
    pixels = _pixels(axes)
    yield Box(across - 4 * pixels, up - 4 * pixels, across + 4 * pixels, up + 4 * pixels)
    ends = (axes.transData.transform((spent, end))[1] for end in share[1:])
    yield Box(across - 2 * pixels, next(ends), across + 2 * pixels, next(ends))


def _pixels(axes: Axes) -> float:
    """Of a point of type."""
    return axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]


def _seat(
    axes: Axes, word: str, there: tuple[float, float], taken: Sequence[Box], around: Sequence[float]
) -> tuple[Box, tuple[float, float]]:
    """Where a word stands beside a place, within the panel and over nothing, as near as can be; and how far away that is."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    pixels = _pixels(axes)
    extent = TextPath((0, 0), word, prop=FontProperties(size=LETTERS)).get_extents()
    width, height = extent.width * pixels, 1.3 * LETTERS * pixels
    across, up = axes.transData.transform(there)
    room = Box(axes.bbox.x0 + pixels, axes.bbox.y0 + pixels, axes.bbox.x1 - pixels, axes.bbox.y1 - pixels)
    found: list[tuple[int, Box, tuple[float, float]]] = []
    for far in AWAY:
        for angle in around:
            offset = (far * math.cos(math.radians(angle)), far * math.sin(math.radians(angle)))
            left = across + offset[0] * pixels - width * (1 - _side(offset[0])) / 2
            bottom = up + offset[1] * pixels - height * (1 - _side(offset[1])) / 2
            box = Box(left, bottom, left + width, bottom + height)
            over = box.size - box.shared(room) + sum(box.shared(other) for other in taken)
            found.append((round(over), box, offset))
    _, box, offset = min(found, key=lambda one: one[0])
    return box, offset


def _side(step: float) -> int:
    """1 to the right or above, -1 to the left or below, 0 where it is neither."""
    return (step > 1) - (step < -1)


def _write(axes: Axes, word: str, there: tuple[float, float], offset: tuple[float, float], colour: str) -> None:
    sides = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}
    across, up = (sides[_side(step)][axis] for axis, step in enumerate(offset))
    led = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3}
    made = axes.annotate(
        word,
        there,
        offset,
        textcoords="offset points",
        ha=across,
        va=up,
        fontsize=LETTERS,
        color=colour,
        arrowprops=led if math.hypot(*offset) > LED else None,
    )
    made.set_in_layout(False)
