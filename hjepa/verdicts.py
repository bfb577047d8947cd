"""How verdicts begin, and the colour of each; light enough for whoever only passes them on."""

from __future__ import annotations

from collections.abc import Iterable

VERDICT_COLOURS = {
    "diverged": "#1a1a1a",
    "complete collapse": "#D1242F",
    "dimensional collapse": "#E8871E",
    "energy collapse": "#8C5A2B",
    "shortcut": "#8250DF",
    "healthy": "#1F77B4",
    "undecided": "#9a9a9a",
}
"""The worst first. Where runs are laid over each other, colour is what became of them."""
KINDS = tuple(VERDICT_COLOURS)
UNKNOWN = "undecided"
FINE = ("healthy", UNKNOWN)


def kind_of(words: str) -> str:
    """How a verdict begins, as one of `KINDS`."""
    return next((kind for kind in KINDS if words.startswith(kind)), UNKNOWN)


def worst(verdicts: Iterable[str]) -> str:
    """The worst kind among some verdicts."""
    return min((kind_of(words) for words in verdicts), key=KINDS.index, default=UNKNOWN)
