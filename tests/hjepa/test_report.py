"""The table and the figure of a run."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure, SubFigure
from rich.console import Console

from hjepa import report
from hjepa.report import ALARM, ENERGY_SHOWN, INK, PANELS, TITLE, series, summary, table

VERDICTS = {"frame": "healthy", "moment": "dimensional collapse (rank 1.3 of 64, 97 % of the variance in one direction)"}
SPECTRA = {"frame": {"first": [1.0, 0.5, 0.1], "last": [1.0, 0.9, 0.8]}, "moment": {"first": [1.0, 0.5], "last": [1.0, 0.0]}}


def metrics(step: int) -> dict[str, float]:
    found = {}
    for level in VERDICTS:
        found |= {f"energy/{level}": 1 / (step + 1), f"trivial/{level}": 2.0, f"collapse/{level}/gain": 0.375}
        found |= {f"collapse/{level}/{name}": 1.25 + step for name in ("std", "std_ratio", "rank")}
        found |= {f"collapse/{level}/energy": 0.5, f"collapse/{level}/trivial": 4.0}
    return found


def records(*steps: int) -> list[dict[str, Any]]:
    """As the journal gives them, events among them."""
    started = {"event": "started", "step": 0, "time": 0.0}
    return [started, *({"n": n, "step": step, "time": 0.0, "metrics": metrics(step)} for n, step in enumerate(steps))]


def printed(*args: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    table(*args[:2], console, *args[2:])
    return console.file.getvalue()  # type: ignore[attr-defined]


def drawn(folder: Path, *args: Any) -> Figure:
    """Draws a summary and gives the figure that was saved."""
    saved: list[Figure] = []
    save = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path: (saved.append(figure), save(figure, path)))
        path = folder / "figures" / "summary.png"
        assert summary(path, *args) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    return saved[0]


@pytest.fixture(scope="module")
def figure(tmp_path_factory: pytest.TempPathFactory) -> Figure:
    return drawn(tmp_path_factory.mktemp("run"), records(0, 10, 20), SPECTRA, VERDICTS, [])


# --- the table -------------------------------------------------------------------------------------------------------


def test_one_row_a_level_with_its_numbers() -> None:
    lines = printed(VERDICTS, metrics(3), {"frame": 1, "moment": 4}).splitlines()
    (frame,) = (line for line in lines if "frame" in line)
    assert frame.split() == ["frame", "1", "0.5", "4", "37.5", "%", "4.2", "4.25", "425", "%", "healthy"]
    (moment,) = (line for line in lines if "moment" in line)
    assert moment.split()[1] == "4"
    assert VERDICTS["moment"] in moment


def test_one_row_a_probe_score() -> None:
    scores = {"probe/where/r2": 0.91234, "probe/where/error": 2.5, "probe/what/accuracy": 0.5, "speed/steps": 8.0}
    lines = [line.split() for line in printed({}, scores).splitlines()]
    assert ["where", "r2", "0.9123"] in lines
    assert ["error", "2.5"] in lines
    assert ["what", "accuracy", "0.5"] in lines
    assert "speed" not in printed({}, scores)


def test_what_was_not_measured_stays_empty_and_words_are_no_markup() -> None:
    text = printed({"[bold]odd": "shortcut ([red]words[/red])"}, {})
    assert "[bold]odd" in text
    assert "shortcut ([red]words[/red])" in text


# --- the figure ------------------------------------------------------------------------------------------------------


def test_series_are_by_step_and_the_last_record_counts() -> None:
    again = {"n": 3, "step": 10, "time": 1.0, "metrics": {"energy/frame": 7.0}}
    assert series([*records(20, 10, 0), again], "energy/frame") == ([0, 10, 20], [1.0, 7.0, 1 / 21])
    assert series(records(0), "energy/nobody") == ([], [])


def test_every_curve_is_drawn_in_the_colour_of_its_level(figure: Figure) -> None:
    energy, spread, rank, spectrum = figure.axes
    for axes, a_level in ((energy, 2), (spread, 1), (rank, 1), (spectrum, 2)):
        curves = [line for line in axes.get_lines() if line.get_color() != ALARM]
        assert [line.get_color() for line in curves] == [c for c in report.COLOURS[:2] for _ in range(a_level)]
    assert list(energy.get_lines()[1].get_ydata()) == pytest.approx([1, 1 / 11, 1 / 21])  # type: ignore[arg-type]
    assert list(rank.get_lines()[0].get_ydata()) == [1.25, 11.25, 21.25]  # type: ignore[arg-type]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log", "linear", "log"]


def test_the_heading_says_the_verdicts(figure: Figure) -> None:
    texts = figure.subfigs[0].legends[0].get_texts()
    assert [text.get_text() for text in texts] == [f"{level}:  {words}" for level, words in VERDICTS.items()]
    assert [text.get_color() for text in texts] == [INK, ALARM]


def test_the_line_of_complete_collapse_is_always_in_sight(figure: Figure) -> None:
    low, high = figure.axes[1].get_ylim()
    assert low < 0.01 < 1 < high


def test_a_collapsed_energy_does_not_squeeze_the_others(tmp_path: Path) -> None:
    dying = [*records(0, 10), {"n": 2, "step": 20, "time": 0.0, "metrics": {"energy/frame": 1e-12}}]
    low, high = drawn(tmp_path, dying, SPECTRA, VERDICTS, []).axes[0].get_ylim()
    assert low == pytest.approx(ENERGY_SHOWN * high)


def test_each_draw_has_a_row_of_its_own(tmp_path: Path, figure: Figure) -> None:
    rows: list[SubFigure] = []
    draws = [lambda row: (rows.append(row), row.subplots()), lambda row: (rows.append(row), row.subplots(3, 4))]
    longer = drawn(tmp_path, records(0), SPECTRA, VERDICTS, draws)
    assert len({id(row) for row in rows}) == 2
    one, three = (row.bbox.height / longer.dpi for row in rows)
    assert (one, three) == pytest.approx((TITLE + PANELS, TITLE + 3 * PANELS), rel=0.05)
    assert longer.get_size_inches()[1] == pytest.approx(figure.get_size_inches()[1] + 2 * TITLE + 4 * PANELS)


def test_what_draws_nothing_takes_no_room(tmp_path: Path, figure: Figure) -> None:
    """Wherever it stands; a picture without panels is one."""
    draws = [lambda row: None, lambda row: row.suptitle("words"), lambda row: row.add_axes((0, 0, 1, 1)), lambda row: None]
    longer = drawn(tmp_path, records(0), SPECTRA, VERDICTS, draws)
    assert longer.get_size_inches()[1] == pytest.approx(figure.get_size_inches()[1] + 2 * (TITLE + PANELS))


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_a_broken_run_has_a_figure_too(tmp_path: Path, value: float) -> None:
    broken = [{"n": 0, "step": 0, "time": 0.0, "metrics": dict.fromkeys(metrics(0), value)}]
    drawn(tmp_path, broken, {"frame": {"last": [value] * 3}}, VERDICTS, [])


def test_a_run_that_recorded_nothing_has_a_figure_too(tmp_path: Path) -> None:
    """And more levels than colours."""
    assert len(drawn(tmp_path, [], {}, {f"level{n}": "healthy" for n in range(9)}, []).axes) == 4
