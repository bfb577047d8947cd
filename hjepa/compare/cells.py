"""What stands in the tables of a comparison, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hjepa.compare.digest import Digest
from hjepa.verdicts import KINDS, kind_of


@dataclass(frozen=True)
class Cell:
    """What stands in a table."""

    text: str = ""
    value: float | None = None
    """By which it is sorted, where it is a number."""
    kind: str | None = None
    """Of the verdict that it is."""
    hint: str = ""


def share_cell(scores: Mapping[str, float], name: str) -> Cell:
    """A share, in percent; empty where there is none."""
    return Cell(f"{100 * scores[name]:.0f}", scores[name]) if name in scores else Cell()


def word_cell(words: str) -> Cell:
    """What was written in a study, sorted by its value where it is a number."""
    try:
        return Cell(words, float(words))
    except ValueError:
        return Cell(words)


def number_cell(value: float | None, percent: bool = False) -> Cell:
    """In three digits; empty where there is none."""
    if value is None:
        return Cell()
    if not percent:
        return Cell(f"{value:.3g}", value)
    return Cell("< -100 %" if value < -1 else f"{100 * value:.0f} %" if abs(value) >= 0.1 else f"{100 * value:.2g} %", value)


def verdict_cell(run: Digest, level: str) -> Cell:
    """What became of a level; the whole of it, and the alarm, as a hint."""
    words = run.verdicts.get(level, "")
    kind = kind_of(words)
    hint = "\n".join(filter(None, [words, run.alarms.get(level, "")]))
    return Cell(kind if words else "", float(KINDS.index(kind)), kind if words else None, hint)


def state_cell(run: Digest) -> Cell:
    """Where the run is, and what of its journal cannot be read."""
    damage = f", {run.damaged} lines damaged" if run.damaged else ""
    at = "" if run.state == "done" else f" at step {run.step}"
    return Cell(run.state + at + damage, hint="\n".join(run.alarms.values()))
