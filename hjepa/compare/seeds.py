"""Runs that differ in nothing but the seed, together: the mean of each score, and how sure it is.

The interval is that of Student's t at 95 %: if seeds were drawn again and again, so many of such intervals would hold the mean of all
seeds. It says nothing of other data or other settings.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hjepa import runs
from hjepa.compare.digest import Digest
from hjepa.errors import Mistake

CONFIDENCE = 0.95

BEGUN = 3
"""Runs of which one began with the weights of the next, at most, that are looked at."""


class Interval(NamedTuple):
    """Of the scores of some seeds."""

    mean: float
    half: float | None
    """Half of its width; None of a single score."""
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3g}" + ("" if self.half is None else f" ± {self.half:.2g}")


@dataclass(frozen=True)
class Repeated:
    """One recipe, with several seeds."""

    places: tuple[int, ...]
    """Of the runs, one a seed."""
    settings: dict[str, str]
    """What tells it from the other runs that are compared, by short key."""
    scores: dict[str, Interval]
    """By metric."""


def repeated(told: Sequence[Digest], varying: Mapping[str, Sequence[str]]) -> list[Repeated]:
    """The recipes that were run with several seeds, in the order of their first runs.

    told: the runs; varying: what differs between them, by short key, of each run. Of a seed that was run twice the later run counts.
    """
    if "seed" not in varying:
        return []  # nor is any study of a sweep's many trials read
    alike: dict[str, dict[Any, int]] = defaultdict(dict)
    for place, run in enumerate(told):
        if run.study:
            alike[_recipe(run.study)][run.study.get("seed")] = place
    return [_together(told, tuple(places.values()), varying) for places in alike.values() if len(places) > 1]


def _together(told: Sequence[Digest], places: tuple[int, ...], varying: Mapping[str, Sequence[str]]) -> Repeated:
    settings = {}
    for key, words in varying.items():
        if key != "seed":
            said = list(dict.fromkeys(words[place] for place in places))
            settings[key] = said[0] if len(said) == 1 else "one a seed"
    values: dict[str, list[float]] = defaultdict(list)
    for place in places:
        for metric, value in told[place].metrics.items():
            if metric.startswith(("probe/", "collapse/")):
                values[metric].append(value)
    return Repeated(places, settings, {metric: interval(found) for metric, found in values.items()})


def interval(scores: Sequence[float]) -> Interval:
    """The mean of scores of different seeds, and its interval."""
    from scipy.special import stdtrit

    mean, seeds = float(np.mean(scores)), len(scores)
    if seeds < 2:
        return Interval(mean, None, seeds)
    quantile = float(stdtrit(seeds - 1, (1 + CONFIDENCE) / 2))
    with np.errstate(invalid="ignore"):  # of what diverged there is no interval
        deviation = float(np.std(scores, ddof=1))
    return Interval(mean, quantile * deviation / seeds**0.5, seeds)


def _recipe(study: Mapping[str, Any], depth: int = 0) -> str:
    """All that training depends on, but for the seed. Where a run began with the weights of another, its recipe stands for them."""
    found = {}
    for key, value in runs.flattened(study).items():
        if f"{key}.".startswith(runs.FREE) or key == "seed":
            continue
        found[key] = _origin(value, depth) if key.endswith(".weights") and isinstance(value, str) else value
    return json.dumps(found, sort_keys=True, default=str)


def _origin(reference: str, depth: int) -> str:
    """`RUN` or `RUN/LEVEL` -> the recipe of that run; the reference itself where it is no longer there."""
    if depth < BEGUN:
        for name, level in ((reference, ""), (str(Path(reference).parent), Path(reference).name)):
            try:
                study = Digest(runs.find(name).path, name).study
            except Mistake:
                continue
            return f"{_recipe(study, depth + 1)}/{level}"
    return reference
