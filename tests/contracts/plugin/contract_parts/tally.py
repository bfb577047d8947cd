"""Counts what it is asked: a prevention that is no module, and has no weight in anything."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from hjepa.contracts import Here, Pair, Spec


class Tally:
    """`calls`: method -> how often."""

    def __init__(self, spec: Spec) -> None:
        self.calls: Counter[str] = Counter()

    def bind(self, encoder: Any) -> None:
        self.calls["bind"] += 1

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        self.calls["terms"] += 1
        return {}

    def after_step(self, step: int) -> None:
        self.calls["after_step"] += 1
