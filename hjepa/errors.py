"""What hjepa says when a person, a file or a plugin is wrong: one clear message, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class Mistake(Exception):
    """Something outside hjepa is wrong, and the message says what to do. The command line ends with code 2."""


def nearest(written: str, allowed: Iterable[str]) -> str:
    """`, did you mean 'x'?`, or nothing where no allowed word is near."""
    close = difflib.get_close_matches(written, [str(word) for word in allowed], n=3, cutoff=0.5)
    if not close:
        return ""
    return ", did you mean " + " or ".join(repr(word) for word in close) + "?"


def listed(words: Iterable[str]) -> str:
    """Words for a message, or `none`."""
    return ", ".join(words) or "none"


def some(words: Iterable[str]) -> str:
    """The first few words, and how many more there are."""
    words = list(words)
    return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a study: where it stands and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class StudyMistake(Mistake):
    """All that is wrong in one study, in one message."""

    def __init__(self, study: str, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = "one mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        lines = [f"{study}: {count}", *(f"  {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines))
