"""Data sources: generated with known truth, or read from files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    """The datasets of this family."""
    components.add("dataset", "moving_digits", "hjepa_data.moving_digits:MovingDigits")
    components.add("dataset", "digits", "hjepa_data.digits:Digits")
    components.add("dataset", "branches", "hjepa_data.branches:Branches")
    components.add("dataset", "arrays", "hjepa_data.arrays:Arrays")
    components.add("dataset", "constant", "hjepa_data.constant:Constant")
    components.add("dataset", "out_of_order", "hjepa_data.out_of_order:OutOfOrder")
