"""The cross-entropy method: a normal distribution of plans is fitted to the best of those that it gave (Rubinstein 1999)."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import Count, Fraction, NonNegative, Plan, PlanningProblem, Positive
from hjepa.nn.population import Ranked, around, begun, judged, reach, within
from hjepa.randomness import Key, normal


class Cem:
    """samples: plans of an iteration; elites: the best of them, which the next distribution is fitted to; iterations: how many
    there are; spread, floor: standard deviation of the first distribution, and the least of any, as shares of half the range of an
    action; momentum: how much of the distribution before stays; anchored: the share of candidates that are near anchors, where the space
    has such. The first ones are anchors then, and their standard deviation stands for half the range.

    Candidates are brought within their bounds before they are judged. The mean, and the best plan so far, are among them.
    """

    def __init__(
        self,
        *,
        samples: Count = 64,
        elites: Count = 8,
        iterations: Count = 5,
        spread: Positive = 0.5,
        floor: NonNegative = 0.05,
        momentum: Fraction = 0.0,
        anchored: Fraction = 1.0,
    ) -> None:
        if elites > samples:
            raise ValueError(f"elites is {elites}, and there are only {samples} samples")
        self.samples, self.elites, self.iterations = samples, elites, iterations
        self.spread, self.floor, self.momentum, self.anchored = spread, floor, momentum, anchored

    @torch.no_grad()
    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        """The best plan that was seen."""
        mean = begun(problem, warm)
        deviation = (self.spread * reach(problem.space)).expand_as(mean)
        best: Ranked | None = None
        for turn in range(self.iterations):
            candidates = self._drawn(problem, mean, deviation, best, key.fold(turn))
            found = judged(problem, candidates)
            best = found.beside(best, 1)
            mean, deviation = self._fitted(problem, found.first(self.elites).actions, mean, deviation)
        assert best is not None
        return best.plan()

    def _drawn(self, problem: PlanningProblem, mean: Tensor, deviation: Tensor, best: Ranked | None, key: Key) -> Tensor:
        noise = normal(key, "candidates", (self.samples, *mean.shape[1:]))
        candidates = mean[:, None] + deviation[:, None] * noise
        candidates[:, 0] = mean
        candidates = around(problem.space, candidates, self.anchored, best is None, key)
        if best is not None and self.samples > 1:
            candidates[:, 1:2] = best.actions
        return within(problem.space, candidates)

    def _fitted(self, problem: PlanningProblem, elites: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        kept, least = self.momentum, self.floor * reach(problem.space)
        fitted = torch.maximum(elites.std(1, correction=0), least)
        return torch.lerp(elites.mean(1), mean, kept), torch.lerp(fitted, deviation, kept)
