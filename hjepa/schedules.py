"""Numbers that change while training, as pure functions of the step: nothing to store, nothing to replay.

In a study a scheduled number is a float, or `{from, to, shape, warmup, at}`: it rises linearly from 0 to `from` over `warmup` steps,
stays there until `at` (default: the end of the warm-up), and goes to `to` by the last step, `linear`, by a half `cosine`, or in one
`jump` at the step `at`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import core_schema

from hjepa.errors import listed, nearest

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda share: share,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
    "jump": lambda share: 1.0,
}
KEYS = ("from", "to", "shape", "warmup", "at")


@dataclass(frozen=True)
class Schedule:
    """Call it with a step; step 0 is the first, step `total` - 1 the last."""

    first: float
    last: float
    shape: str = "linear"
    warmup: int = 0
    at: int = 0
    total: int = 1

    @staticmethod
    def of(value: float) -> Schedule:
        """The same number at every step."""
        return Schedule(first=value, last=value)

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.first * (step + 1) / self.warmup
        if step < self.at or self.first == self.last:
            return self.first
        if step >= self.total - 1:
            return self.last
        share = (step - self.at) / (self.total - 1 - self.at)
        return self.first + (self.last - self.first) * SHAPES[self.shape](share)

    def written(self) -> float | dict[str, float | int | str]:
        """As a study would say it."""
        if self.first == self.last and not self.warmup:
            return self.first
        shown: dict[str, float | int | str] = {"from": self.first, "to": self.last, "shape": self.shape}
        return shown | {"warmup": self.warmup, "at": self.at}

    @staticmethod
    def read(value: Any, steps: int) -> Schedule:
        """From a study of `steps` training steps. ValueError says what is wrong."""
        if isinstance(value, Schedule):
            return value
        if not isinstance(value, Mapping):
            return Schedule.of(_finite(value, "a number"))
        unknown = [key for key in value if key not in KEYS]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}{nearest(str(unknown[0]), KEYS)} (allowed: {listed(KEYS)})")
        if "from" not in value:
            raise ValueError("a schedule needs `from`")
        first = _finite(value["from"], "`from`")
        shape = value.get("shape", "linear")
        if not isinstance(shape, str) or shape not in SHAPES:
            raise ValueError(f"unknown shape {shape!r}{nearest(str(shape), SHAPES)} (allowed: {listed(SHAPES)})")
        warmup = _step(value.get("warmup", 0), "`warmup`")
        at = _step(value.get("at", warmup), "`at`")
        if at < warmup:
            raise ValueError(f"`at` {at} is before the end of `warmup` {warmup}")
        last = _finite(value.get("to", first), "`to`")
        return Schedule(first=first, last=last, shape=shape, warmup=warmup, at=at, total=steps)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def validate(value: Any, info: ValidationInfo) -> Schedule:
            return cls.read(value, steps=(info.context or {}).get("steps", 1))

        return core_schema.with_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(lambda schedule: schedule.written())
        )


def _finite(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} must be a finite number, or a schedule {{{listed(KEYS)}}}; written: {value!r}")
    return number


def _step(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{what} must be a step, 0 or later; written: {value!r}")
    return value
