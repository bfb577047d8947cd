"""Runs that differ in nothing but the seed, told together."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recorded import OBJECTIVE, trained
from rich.console import Console

from hjepa import compare
from hjepa.compare import gather, terminal
from hjepa.compare.page import page
from hjepa.compare.seeds import Repeated, interval, repeated


def made(place: Path, seed: int, score: float, weight: float = 1.0, **keys: Any) -> Path:
    """A run of a seed; `keys` are keys of its level."""
    run = trained(place, score=score, weight=weight)
    study = yaml.safe_load((run / "resolved.yaml").read_text()) | {"seed": seed}
    study["levels"]["frame"] |= keys
    study["train"] = {"steps": 10, "workers": seed}
    (run / "resolved.yaml").write_text(yaml.safe_dump(study))
    return run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def together(runs: Path) -> list[Repeated]:
    told = gather([str(runs)])
    return repeated(told.runs, told.varying)


def test_runs_of_one_recipe_are_told_together(runs: Path) -> None:
    for seed, score in enumerate((0.5, 0.6, 0.7)):
        made(runs / f"a{seed}", seed, score)
        made(runs / f"b{seed}", seed, 2 * score, weight=2.0)
    made(runs / "c0", 0, 9.0, weight=3.0)
    first, second = together(runs)
    assert first.places == (0, 1, 2) and second.places == (3, 4, 5)
    assert first.settings == {"std": "1"} and second.settings == {"std": "2"}
    assert first.scores[OBJECTIVE].mean == pytest.approx(0.6) and second.scores[OBJECTIVE].mean == pytest.approx(1.2)
    assert first.scores[OBJECTIVE].seeds == 3


def test_a_seed_that_was_run_twice_counts_once(runs: Path) -> None:
    for name, seed, score in (("a", 0, 0.1), ("b", 0, 0.5), ("c", 1, 0.7)):
        made(runs / name, seed, score)
    (one,) = together(runs)
    assert one.places == (1, 2) and one.scores[OBJECTIVE].mean == pytest.approx(0.6)
    made(runs / "d", 0, 0.5, weight=2.0)
    made(runs / "e", 0, 0.5, weight=2.0)
    assert len(together(runs)) == 1


def test_where_a_run_began_with_the_weights_of_another_that_ones_recipe_counts(runs: Path) -> None:
    for seed in (0, 1):
        made(runs / f"first{seed}", seed, 0.5)
        made(runs / f"other{seed}", seed, 0.5, weight=2.0)
        made(runs / f"then{seed}", seed, 0.5 + seed, weights=f"runs/first{seed}/frame")
        made(runs / f"beside{seed}", seed, 0.5, weights=f"other{seed}")
        made(runs / f"lost{seed}", seed, 0.5, weights=f"gone{seed}")
    told = gather([str(runs)])
    found = [[told.runs[place].name for place in one.places] for one in repeated(told.runs, told.varying)]
    assert found == [["beside0", "beside1"], ["first0", "first1"], ["other0", "other1"], ["then0", "then1"]]
    (then,) = (one for one in repeated(told.runs, told.varying) if told.runs[one.places[0]].name == "then0")
    assert then.settings["weights"] == "one a seed"
    assert then.scores[OBJECTIVE].mean == 1.0


def test_what_a_run_lacks_is_left_out(runs: Path) -> None:
    made(runs / "a0", 0, 0.5)
    made(runs / "a1", 1, 0.7)
    trained(runs / "lost").joinpath("resolved.yaml").unlink()
    unfinished = made(runs / "a2", 2, 0.9)
    lines = [line for line in (unfinished / "journal.jsonl").read_text().splitlines(keepends=True) if "probe/" not in line]
    (unfinished / "journal.jsonl").write_text("".join(lines))
    (one,) = together(runs)
    assert len(one.places) == 3 and one.scores[OBJECTIVE].seeds == 2


# --- intervals --------------------------------------------------------------------------------------------------------


def test_the_interval_of_three_is_that_of_the_tables() -> None:
    """Student's t at 95 % with two degrees of freedom: 4.303."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert str(interval([0.5])) == "0.5" and str(found) == "2 ± 2.5"


def test_scores_that_are_no_numbers_are_told_as_they_are() -> None:
    for bad in (float("nan"), float("inf")):
        assert not np.isfinite(interval([1.0, bad, 2.0]).mean)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(-10, 10), st.floats(0.1, 10))
def test_intervals_go_with_the_scale_of_scores(scores: list[float], shift: float, scale: float) -> None:
    found, other = interval(scores), interval([shift + scale * score for score in scores])
    assert other.mean == pytest.approx(shift + scale * found.mean, abs=1e-6)
    assert other.half == pytest.approx(scale * found.half, rel=1e-6, abs=1e-6)


def test_of_a_hundred_intervals_about_ninety_five_hold_the_truth() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 4))
    held = [abs(found.mean - 3.0) <= found.half for found in map(interval, draws.tolist())]
    assert 0.935 < np.mean(held) < 0.965


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_terminal_page_and_json_tell_them(runs: Path) -> None:
    for seed in (0, 1):
        made(runs / f"a{seed}", seed, 0.5 + seed / 10)
    told = gather([str(runs)])
    console = Console(file=io.StringIO(), width=120)
    terminal.table(told, console)
    assert "2 healthy   0.55 ± 0.64" in console.file.getvalue()  # type: ignore[attr-defined]
    shown = page(told, compare.pictures(told))
    assert "0.55 ± 0.64" in shown and shown.index(">Seeds<") < shown.index(">Runs<")
    (one,) = json.loads(json.dumps(compare.as_json(told, [])))["seeds"]
    assert one["runs"] == ["a0", "a1"] and one["scores"][OBJECTIVE]["seeds"] == 2


def test_without_repeated_seeds_nothing_is_said_of_them(runs: Path) -> None:
    made(runs / "a", 0, 0.5)
    made(runs / "b", 1, 0.5, weight=2.0)
    told = gather([str(runs)])
    assert not told.seeds() and ">Seeds<" not in page(told, compare.pictures(told))
