"""What a person sees while a run trains: a bar where somebody looks, a line now and then where output goes to a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 12
"""How many lines a whole run prints where nobody looks."""


class _Shown:
    """Speed since the last update, and the words for it."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console, self.steps = console, steps
        self._last: tuple[int, float] | None = None

    def _speed(self, step: int, samples: int) -> str:
        now = time.monotonic()
        before, self._last = self._last, (step, now)
        if before is None or step <= before[0]:
            return ""
        return f"{(step - before[0]) * samples / (now - before[1]):.0f} samples/s"

    def _words(self, values: Mapping[str, float], verdicts: Mapping[str, str]) -> str:
        loss = sum(value for name, value in values.items() if name.startswith("loss/"))
        health = "  ".join(f"{level}: {words}" for level, words in verdicts.items())
        return f"loss {loss:.3f}  {health}"


class Bar(_Shown):
    """A rich progress bar: step, samples a second, loss, each level's verdict."""

    def __enter__(self) -> Bar:
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=self.console)
        self._progress.start()
        self._task = self._progress.add_task("composing", total=self.steps)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, step: int, values: Mapping[str, float], verdicts: Mapping[str, str], samples: int) -> None:
        """After a step that was recorded."""
        if self._last is None:
            self._progress.reset(self._task, completed=step)  # steps of before a resume say nothing of the speed
        words = f"{self._speed(step, samples)}  {self._words(values, verdicts)}"
        self._progress.update(self._task, completed=step, description=words)


class Lines(_Shown):
    """A line every so many steps, and whenever a verdict changes."""

    def __enter__(self) -> Lines:
        self._due, self._told = 0, dict[str, str]()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def update(self, step: int, values: Mapping[str, float], verdicts: Mapping[str, str], samples: int) -> None:
        """After a step that was recorded."""
        if step < self._due and self._told == verdicts and step < self.steps:
            return
        self._due, self._told = step + max(1, self.steps // LINES), dict(verdicts)
        speed = self._speed(step, samples)
        self.console.print(f"step {step}/{self.steps}  {speed}  {self._words(values, verdicts)}", highlight=False, markup=False)
