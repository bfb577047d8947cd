"""The three splits that every source has."""

from __future__ import annotations

from hjepa.errors import Mistake, listed, nearest

SPLITS = ("train", "valid", "test")


def known(name: str) -> str:
    """`name`, where it is a split; a Mistake where it is not."""
    if name not in SPLITS:
        raise Mistake(f"there is no split {name!r} among {listed(SPLITS)}{nearest(name, SPLITS)}")
    return name
