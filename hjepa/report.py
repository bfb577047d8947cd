"""What a run shows to a person: one table in the terminal, one figure in the run folder.

Both are made from what the run recorded: `energy/<level>`, `trivial/<level>`, `collapse/<level>/<diagnostic>`,
`probe/<label>/<score>`. matplotlib and rich are imported when something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hjepa.collapse import SPREAD_LEFT
from hjepa.journal import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from rich.console import Console
    from rich.table import Table

    from hjepa.train import Result

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""One a level, in the order of the study; told apart by people who see colours differently too (Okabe & Ito 2008)."""
INK, FAINT, ALARM = "#2b2b2b", "#8a8a8a", "#B3001B"
HEALTHY = "healthy"
DASHED = (0, (4, 2))

TITLE, PANELS = 0.7, 1.4
"""Inches of what is above and below the panels of a picture, and of each row of them."""

ENERGY_SHOWN = 1e-4
"""A collapsed level's energy falls to nothing: it is shown down to this share of the largest, so that others stay apart."""

Records = Sequence[Mapping[str, Any]]
"""The journal's: `{"step": ..., "metrics": {name: number}}`; those without metrics are passed over."""

# --- the table -------------------------------------------------------------------------------------------------------


def table(
    verdicts: Mapping[str, str], metrics: Mapping[str, float], console: Console, clocks: Mapping[str, int] | None = None
) -> None:
    """Prints one row a level, and one row a probe score where there are any. `clocks`: base ticks between a level's steps."""
    console.print(_levels(verdicts, metrics, clocks or {}))
    scores = [
        (name.split("/", 2), value) for name, value in metrics.items() if name.startswith("probe/") and name.count("/") > 1
    ]
    if scores:
        console.print(_probes([(label, score, value) for (_, label, score), value in scores]))


def composition(rows: Sequence[Mapping[str, Any]], console: Console, notes: Iterable[str] = ()) -> None:
    """Prints what each level of a study reads and gives, the frames that it needs, and what else is to be said."""
    found = bare("level", "kind", "reads", "clock", "steps", "tokens x width", "parameters", "needs")
    for row in rows:
        tokens = " x ".join(str(size) for size in [*row["grid"], row["width"]])
        cells = (
            row["level"],
            row["kind"],
            row["reads"],
            row["clock"],
            row["steps"],
            tokens,
            f"{row['parameters']:,}",
            f"{row['needs']} steps",
        )
        found.add_row(*(str(cell) for cell in cells))
    console.print(found)
    for row in rows:
        console.print(f" {row['level']} needs {row['sum']}; its source gives {row['gives']}", highlight=False)
    for note in notes:
        console.print(f" {note}", highlight=False)


def _levels(verdicts: Mapping[str, str], metrics: Mapping[str, float], clocks: Mapping[str, int]) -> Table:
    from rich.text import Text

    found = bare("level", "clock", "energy", "baseline", "gain", "rank", "std", "std left", "verdict")
    for level, words in verdicts.items():
        of = {
            name: metrics.get(f"collapse/{level}/{name}") for name in ("energy", "trivial", "gain", "rank", "std", "std_ratio")
        }
        found.add_row(
            Text(level, style="bold"),
            str(clocks.get(level, "")),
            _number(of["energy"]),
            _number(of["trivial"]),
            _percent(of["gain"]),
            "" if of["rank"] is None else f"{of['rank']:.1f}",
            _number(of["std"]),
            _percent(of["std_ratio"]),
            Text(words, style="green" if words == HEALTHY else "bold red"),
        )
    return found


def _probes(scores: Iterable[tuple[str, str, float]]) -> Table:
    from rich.text import Text

    found, before = bare("probe", "score", "value"), None
    for label, score, value in scores:
        found.add_row(Text(label if label != before else "", style="bold"), Text(score), f"{value:.4g}")
        before = label
    return found


def bare(*titles: str, words: Sequence[str] = ("level", "verdict", "probe", "score")) -> Table:
    """A table of lines only where they help; columns of `words` stand left, numbers right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for title in titles:
        made.add_column(title, justify="left" if title in words else "right", no_wrap=title != "verdict")
    return made


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.3g} %"


# --- the figure ------------------------------------------------------------------------------------------------------


def summary(
    path: Path,
    records: Records,
    spectra: Mapping[str, Mapping[str, Sequence[float]]],
    verdicts: Mapping[str, str],
    draws: Sequence[Callable[[SubFigure], None]] = (),
) -> Path:
    """Draws a run into the picture `path`, whose folder is made, and returns `path`.

    Panels: energy against baseline, spread left, effective rank, spectra; below them what each of `draws` draws, if it does.
    `spectra`: level -> `first` and `last` -> singular values over the largest. `verdicts` name the levels, in order.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    levels = dict(zip(verdicts, (COLOURS[place % len(COLOURS)] for place in range(len(verdicts))), strict=True))
    heights = [0.4 + 0.27 * len(levels), 6.2, *([TITLE + PANELS] * len(draws))]
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.09)
    figure = Figure(figsize=(12, sum(heights)), dpi=130, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights, left=0, right=1, bottom=0, top=1)
    rows = [figure.add_subfigure(grid[place]) for place in range(len(heights))]
    _heading(rows[0], levels, verdicts)
    axes = rows[1].subplots(2, 2)
    _energies(axes[0, 0], records, levels)
    _spreads(axes[0, 1], records, levels)
    _ranks(axes[1, 0], records, levels)
    _spectra(axes[1, 1], spectra, levels)
    for place, draw in enumerate(draws, start=2):
        draw(rows[place])
        heights[place] = _height(rows[place])
    figure.set_figheight(sum(heights))
    grid.set_height_ratios(heights)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _height(figure: SubFigure) -> float:
    """What a picture needs, in inches: known when it is drawn."""
    if len(figure.get_children()) == 1:  # the background
        return 0.0
    grids = (axes.get_gridspec() for axes in figure.axes)
    return TITLE + PANELS * max((grid.nrows for grid in grids if grid is not None), default=1)


def write(result: Result) -> Path:
    """The picture of a run, `figures/summary.png`, from its journal."""
    records = list(read(result.run / "journal.jsonl"))
    seen = [record["spectra"] for record in records if record.get("spectra")]
    spectra = {level: {"first": seen[0][level], "last": seen[-1][level]} for level in (seen[0] if seen else ())}
    return summary(result.run / "figures" / "summary.png", records, spectra, result.verdicts, result.draws)


def series(records: Records, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, by step; what was recorded last counts."""
    values = {record["step"]: record["metrics"][name] for record in records if name in record.get("metrics", {})}
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def _heading(figure: SubFigure, levels: Mapping[str, str], verdicts: Mapping[str, str]) -> None:
    """The legend of the whole figure: colour, level, verdict."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, linewidth=3) for colour in levels.values()]
    labels = [f"{level}:  {verdicts[level]}" for level in levels]
    legend = figure.legend(lines, labels, loc="center left", bbox_to_anchor=(0.035, 0.5), frameon=False, fontsize=12)
    for text, words in zip(legend.get_texts(), verdicts.values(), strict=True):
        text.set_color(INK if words == HEALTHY else ALARM)


def _energies(axes: Axes, records: Records, levels: Mapping[str, str]) -> None:
    panel(axes, "Prediction energy", "step")
    for level, colour in levels.items():
        curve(axes, *series(records, f"trivial/{level}"), colour, DASHED)
        curve(axes, *series(records, f"energy/{level}"), colour)
    logarithmic(axes)
    low, high = axes.get_ylim()
    axes.set_ylim(bottom=max(low, ENERGY_SHOWN * high))
    styles(axes, [("energy", "-"), ("trivial baseline", DASHED)])


def _spreads(axes: Axes, records: Records, levels: Mapping[str, str]) -> None:
    panel(axes, "Spread left (std over its start, or over its scale)", "step")
    for level, colour in levels.items():
        curve(axes, *series(records, f"collapse/{level}/std_ratio"), colour)
    axes.axhline(SPREAD_LEFT, color=ALARM, linewidth=1)
    logarithmic(axes)
    low, high = axes.get_ylim()
    low = min(low, SPREAD_LEFT / 4)
    axes.set_ylim(low, max(high, 2))
    axes.axhspan(low, SPREAD_LEFT, color=ALARM, alpha=0.06, linewidth=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    words = f" complete collapse below {100 * SPREAD_LEFT:g} %"
    axes.text(0, SPREAD_LEFT / 1.15, words, transform=axes.get_yaxis_transform(), va="top", fontsize=8.5, color=ALARM)


def _ranks(axes: Axes, records: Records, levels: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    panel(axes, "Effective rank (directions)", "step")
    for level, colour in levels.items():
        curve(axes, *series(records, f"collapse/{level}/rank"), colour)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def _spectra(axes: Axes, spectra: Mapping[str, Mapping[str, Sequence[float]]], levels: Mapping[str, str]) -> None:
    panel(axes, "Spectrum (singular values over the largest)", "direction")
    for level, colour in levels.items():
        for when, style in (("first", DASHED), ("last", "-")):
            values = [value if value > 0 else math.nan for value in spectra.get(level, {}).get(when, ())]
            curve(axes, range(1, len(values) + 1), values, colour, style)
    logarithmic(axes)
    styles(axes, [("now", "-"), ("at the start", DASHED)])


def panel(axes: Axes, title: str, below: str) -> None:
    """An empty panel in the house's manner; `below` says what the horizontal axis is."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel(below, fontsize=9, color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8c8c8")
    axes.tick_params(colors=FAINT, labelsize=8.5, which="both")
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)


def curve(axes: Axes, x: Sequence[float], y: Sequence[float], colour: str, style: Any = "-") -> None:
    """A line, or a dot where there is only one point."""
    solid = style == "-"
    width, alpha = (1.8, 1.0) if solid else (1.2, 0.75)
    marker = "o" if len(x) == 1 else ""
    axes.plot(
        x, y, color=colour, linestyle=style, linewidth=width, alpha=alpha, marker=marker, fillstyle="full" if solid else "none"
    )


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis where something positive is drawn."""
    if axes.dataLim.minposy < math.inf:
        axes.set_yscale("log")


def styles(axes: Axes, styles: Sequence[tuple[str, Any]]) -> None:
    """A small legend of what the kinds of lines mean; colours are the heading's affair."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=FAINT, linewidth=1.5, linestyle=style) for _, style in styles]
    axes.legend(lines, [name for name, _ in styles], frameon=False, fontsize=8.5, labelcolor=FAINT, loc="best")
