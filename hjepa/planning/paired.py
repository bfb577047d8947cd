"""Policies beside one another in the same tasks: by how much one reaches more goals than another, task by task.

Tasks differ far more than policies do. Where both reached a goal, or neither did, a task says nothing of the difference; so the interval
of a difference over the same tasks is narrower than the intervals of two shares let one think.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING

from torch import Tensor

from hjepa.keys import ORACLE, PLANNED

if TYPE_CHECKING:
    from hjepa.planning import Acted


def main_of(policies: Collection[str]) -> str | None:
    """Whom the others are held against: what was learned, or else the world itself as the model."""
    return next((name for name in (PLANNED, ORACLE) if name in policies), None)


def against(acted: Mapping[str, Acted]) -> dict[str, dict[str, float]]:
    """Of every policy but the main one: which share of the goals it reached more than that, and the ends of the 95 % interval."""
    main = main_of(acted)
    if main is None:
        return {}
    reached = {name: one.record.reached.any(1) for name, one in acted.items()}
    return {name: difference(hit, reached[main]) for name, hit in reached.items() if name != main}


def difference(reached: Tensor, main: Tensor) -> dict[str, float]:
    """`against` of the goals (...) bool that a policy reached and those of the main one, and the ends of its 95 % interval."""
    gained, lost, count = int((reached & ~main).sum()), int((main & ~reached).sum()), main.numel()
    low, high = interval(gained, lost, count)
    return {"against": (gained - lost) / count, "against_low": low, "against_high": high}


def points(scores: Mapping[str, float], name: str = "against") -> str:
    """A difference in percentage points, and the ends of its interval; empty where there is none."""
    if name not in scores:
        return ""
    return "{:+d} ({:+d} to {:+d})".format(*(round(100 * scores[end]) for end in (name, f"{name}_low", f"{name}_high")))


def interval(gained: int, lost: int, count: int) -> tuple[float, float]:
    """Where (gained - lost) / count lies with 95 % confidence: the adjusted Wald interval of paired shares (Bonett and Price 2012).

    One more task is added of each kind in which the two differ, so that it has a width where they never do.
    """
    more, less = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half = NormalDist().inv_cdf(0.975) * math.sqrt((more + less - (more - less) ** 2) / (count + 2))
    return max(-1.0, more - less - half), min(1.0, more - less + half)
