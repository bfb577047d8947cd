"""Many runs in one figure, and what a sweep found."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import DEAD, FLAT, OBJECTIVE, sweep_folder, trained, trial

from hjepa.compare import found, overlay
from hjepa.compare.digest import Digest, digest
from hjepa.compare.overlay import _apart, sampled
from hjepa.compare.page import _drawn
from hjepa.verdicts import VERDICT_COLOURS


def runs_of(tmp_path: Path, *words: str) -> list[Digest]:
    return [digest(trained(tmp_path / f"run{n}", said), f"run{n}") for n, said in enumerate(words)]


def trials_of(tmp_path: Path, count: int) -> list[Digest]:
    sweep = sweep_folder(tmp_path / "s-sweep")
    kinds = ["healthy", DEAD, FLAT]
    folders = [trial(sweep, n, kinds[n % 3], "done", weight=1.0 + n * n, kind="ab"[n % 2]) for n in range(count)]
    return [digest(folder, folder.name) for folder in folders]


def test_a_curve_has_the_colour_of_what_became_of_its_level(tmp_path: Path) -> None:
    figure = overlay.curves(runs_of(tmp_path, "healthy", DEAD), [0, 1])
    for axes in figure.axes:
        drawn = {line.get_gid().split("-")[1]: line.get_color() for line in axes.get_lines() if line.get_gid()}  # type: ignore[union-attr]
        assert drawn == {"0": VERDICT_COLOURS["healthy"], "1": VERDICT_COLOURS["complete collapse"]}
    spread, rank, energy, spectrum = figure.axes
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear", "log", "log"]
    assert [text.get_text() for text in rank.texts] == ["run0", "run1"]
    assert list(rank.get_lines()[0].get_ydata()) == [8.0, 9.0, 10.0]  # type: ignore[arg-type]
    healthy = next(line for line in energy.get_lines() if str(line.get_gid()).startswith("run-0"))
    assert list(healthy.get_ydata()) == [0.5, 0.5, 0.5]  # type: ignore[arg-type]
    assert spread.get_ylim()[0] < 0.01
    assert math.isnan(spectrum.get_lines()[0].get_ydata()[2])  # type: ignore[index]


@given(st.lists(st.sampled_from(["healthy", DEAD, FLAT]), min_size=1, max_size=300), st.integers(3, 50))
def test_of_many_runs_some_of_every_kind_are_drawn(words: list[str], most: int) -> None:
    runs = [Digest(Path(), str(n), verdicts={"frame": said}) for n, said in enumerate(words)]
    places = sampled(runs, most)
    assert len(places) == len(set(places)) == min(most, len(runs))
    assert {runs[place].kind for place in places} == {run.kind for run in runs}


@given(st.lists(st.floats(0, 1), max_size=8))
def test_names_stand_apart_in_the_order_of_their_curves(ends: list[float]) -> None:
    seats = sorted(_apart(ends, 0.075))
    assert all(later - before > 0.0749 for before, later in pairwise(seats))
    assert max(seats, default=0) < 1.0001


def test_a_run_that_recorded_nothing_is_no_obstacle(tmp_path: Path) -> None:
    runs = [*runs_of(tmp_path, "healthy"), Digest(tmp_path, "empty")]
    _drawn("curves", overlay.curves(runs, [0, 1]))
    _drawn("curves", overlay.curves(runs[1:], [0]))


def test_a_sweep_is_drawn_in_full(tmp_path: Path) -> None:
    runs = trials_of(tmp_path, 12)
    figures = found.drawings(runs, {OBJECTIVE: "maximize", "collapse/frame/gain": "maximize"})
    assert list(figures) == ["history", "importances", "pareto front", "parallel coordinates"]
    for name, figure in figures.items():
        assert _drawn(name, figure).startswith("<svg")
    best = figures["history"].axes[0].get_lines()[0]
    assert list(best.get_ydata()) == pytest.approx([n / 10 for n in range(12)])  # type: ignore[arg-type]
    assert figures["history"].axes[0].collections[0].get_offsets().data.shape == (12, 2)  # type: ignore[union-attr]


def test_importances_find_what_the_score_follows(tmp_path: Path) -> None:
    """The score grows with the weight, and the label says nothing."""
    for direction in ("maximize", "minimize"):
        weighed = found.weights(trials_of(tmp_path / direction, 40), {OBJECTIVE: direction})
        assert weighed["weight"] > 0.6 > weighed["kind"]


def test_only_trials_that_ended_with_a_score_count(tmp_path: Path) -> None:
    sweep = sweep_folder(tmp_path / "s-sweep")
    states = ["done", "pruned", None, "failed"]
    runs = [digest(trial(sweep, n, outcome=state, weight=0.5), str(n)) for n, state in enumerate(states)]
    assert [bool(found.scores(run, {OBJECTIVE: "maximize"})) for run in runs] == [True, False, False, False]
    assert "history" not in found.drawings(runs[1:], {OBJECTIVE: "maximize"})
    assert found.drawings(runs, {OBJECTIVE: "maximize"})


def test_every_line_of_the_parallel_coordinates_has_all_its_values(tmp_path: Path) -> None:
    axes = found.parallel(trials_of(tmp_path, 4), {OBJECTIVE: "maximize"}).axes[0]
    lines = [list(line.get_ydata()) for line in axes.get_lines() if line.get_gid()]  # type: ignore[arg-type]
    assert sorted(line[-1] for line in lines) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert {line[1] for line in lines} == {0.0, 1.0}
