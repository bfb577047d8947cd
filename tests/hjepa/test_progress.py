"""What a person sees while a run trains."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hjepa import progress
from hjepa.progress import LINES, Bar, Lines

HEALTHY = {"frame": "healthy", "moment": "healthy"}
VALUES = {"loss/frame/prediction": 0.25, "loss/frame/vicreg.std": 1.0, "loss/moment/prediction": 0.5, "lr": 7.0}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A second passes at every look at the clock."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", monotonic)
    return now


def lines(steps: range, total: int, verdicts: dict[int, dict[str, str]] | None = None) -> list[str]:
    """What is printed where nobody looks; verdicts from a step on."""
    console = Console(file=io.StringIO(), width=200)
    with Lines(console, total) as shown:
        now = HEALTHY
        for step in steps:
            now = (verdicts or {}).get(step, now)
            shown.update(step, VALUES, now, samples=64)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_a_line_says_step_speed_loss_and_verdicts() -> None:
    first, second, *_ = lines(range(1, 41), 40)
    assert first == "step 1/40    loss 1.750  frame: healthy  moment: healthy"
    assert second.startswith("step 4/40  192 samples/s  loss 1.750")


@pytest.mark.parametrize("total", [1, 5, 12, 100, 1000])
def test_few_lines_and_the_last_step_among_them(total: int) -> None:
    printed = lines(range(1, total + 1), total)
    assert len(printed) <= LINES + 2
    assert printed[-1].startswith(f"step {total}/{total}")


def test_a_verdict_that_changes_is_said_at_once() -> None:
    dead = {**HEALTHY, "moment": "complete collapse (std at 0.5 % of its start)"}
    printed = lines(range(1, 101), 100, {18: dead, 19: HEALTHY})
    assert [line.split()[1] for line in printed if "moment: healthy" not in line] == ["18/100"]
    assert any(line.startswith("step 19/100") for line in printed)


def test_the_same_verdicts_in_the_same_mapping_are_no_change() -> None:
    """A trainer may hand over the mapping that it goes on using."""
    console, verdicts = Console(file=io.StringIO(), width=200), dict(HEALTHY)
    with Lines(console, 100) as shown:
        shown.update(1, VALUES, verdicts, samples=1)
        verdicts["frame"] = "shortcut"
        shown.update(2, VALUES, verdicts, samples=1)
    assert "frame: shortcut" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_bar_where_somebody_looks() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    with Bar(console, 40) as shown:
        shown.update(21, VALUES, HEALTHY, samples=64)
        task = shown._progress.tasks[0]
        assert task.completed == 21
        assert not task._progress, "steps of the run before it was resumed say nothing of the speed"
        shown.update(40, VALUES, HEALTHY, samples=64)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "40/40" in said
    assert "samples/s  loss 1.750  frame: healthy  moment: healthy" in said
    assert len(said.splitlines()[-1]) <= 160
