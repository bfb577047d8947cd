"""Several models in the same tasks: where a mean lies if both models and tasks were drawn again.

Every model does the same tasks, and every task of a model is done by the same one: S x B outcomes are not as many independent ones. A
two-way analysis of variance says how much of them is the models', how much the tasks', and how much is left (Searle, Casella and
McCulloch 1992, section 4.3); the interval of the mean has Satterthwaite's degrees of freedom (1946).

S models    B tasks
"""

from __future__ import annotations

import math

from torch import Tensor

from hjepa.planning import episodes, paired

SURE = 0.975


def share(hit: Tensor) -> dict[str, float]:
    """Which share of goals (S, B) bool was reached, and where it lies with 95 % confidence.

    As Wilson (1927), of as many independent outcomes as would vary as much, at most S * B; of B where all or none were reached.
    """
    mean, count = float(hit.float().mean()), float(hit.numel())
    if mean in (0, 1):
        return episodes.share(hit[0])
    variance, times = _spread(hit.float())
    independent = mean * (1 - mean) / count
    if variance > independent:
        count = mean * (1 - mean) / variance
    else:
        times = _times(math.inf)
    centre, half = mean + times**2 / (2 * count), times * math.sqrt(mean * (1 - mean) / count + (times / (2 * count)) ** 2)
    low, high = ((centre + side * half) / (1 + times**2 / count) for side in (-1, 1))
    return {"success": mean, "low": low, "high": high}


def difference(reached: Tensor, main: Tensor) -> dict[str, float]:
    """`against` of the goals (S, B) bool that a policy reached and those of the main one, and the ends of its 95 % interval.

    Never narrower than that of S * B independent pairs (Bonett and Price 2012), which has a width where the two never differ.
    """
    found, (variance, times) = paired.difference(reached, main), _spread(reached.float() - main.float())
    half = times * math.sqrt(variance)
    low, high = found["against"] - half, found["against"] + half
    return found | {
        "against_low": max(-1.0, min(low, found["against_low"])),
        "against_high": min(1.0, max(high, found["against_high"])),
    }


def _spread(values: Tensor) -> tuple[float, float]:
    """Of the mean of values (S, B): its variance, and by how many standard deviations it may be wrong with 95 % confidence.

    What varies less between models, or between tasks, than what is left of both does, is taken not to vary by itself.
    """
    models, tasks = values.shape
    if models < 2 or tasks < 2:
        return 0.0, 0.0
    mean, by_model, by_task = values.mean(), values.mean(1, keepdim=True), values.mean(0, keepdim=True)
    rest = _Square(values - by_model - by_task + mean, (models - 1) * (tasks - 1))
    each = _Square((by_model - mean).expand_as(values), models - 1), _Square((by_task - mean).expand_as(values), tasks - 1)
    more = [square for square in each if square.mean > rest.mean]
    whole = rest.mean + sum(square.mean - rest.mean for square in more)
    # where one varies alone, its own mean square is the whole, and what is left adds nothing that is uncertain
    uncertain = sum(square.mean**2 / square.freedom for square in (more if len(more) == 1 else [*more, rest]))
    return whole / values.numel(), _times(whole**2 / uncertain if uncertain else math.inf)


class _Square:
    """A mean square (S, B) of so many degrees of freedom."""

    def __init__(self, apart: Tensor, freedom: int) -> None:
        self.mean, self.freedom = float(apart.square().sum()) / freedom, freedom


def _times(freedom: float) -> float:
    """By how many standard deviations a mean may be wrong with 95 % confidence (Student 1908)."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, SURE))
