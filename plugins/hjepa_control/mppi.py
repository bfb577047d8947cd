"""Model predictive path integral control: plans are weighed by what they cost (Williams et al. 2017, arXiv:1509.01149)."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import Cost, Count, Fraction, Plan, PlanningProblem, Positive
from hjepa.nn.population import Ranked, around, begun, judged, reach, within
from hjepa.randomness import Key, normal


class Mppi:
    """samples: plans of an iteration; iterations: how often the mean moves; spread: standard deviation around it, as a share of half
    the range of an action; temperature: a plan that costs so much more than the best weighs e times less; anchored: as of `cem`.

    Of plans that violate something only those count that do so least. The best plan that was seen is given, the means among them.
    """

    def __init__(
        self,
        *,
        samples: Count = 64,
        iterations: Count = 5,
        spread: Positive = 0.5,
        temperature: Positive = 0.1,
        anchored: Fraction = 1.0,
    ) -> None:
        self.samples, self.iterations, self.spread = samples, iterations, spread
        self.temperature, self.anchored = temperature, anchored

    @torch.no_grad()
    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        """The best plan that was seen."""
        mean = begun(problem, warm)
        deviation = self.spread * reach(problem.space)
        best: Ranked | None = None
        for turn in range(self.iterations):
            noise = deviation * normal(key.fold(turn), "candidates", (self.samples, *mean.shape[1:]))
            noise[:, 0] = 0
            candidates = around(problem.space, mean[:, None] + noise, self.anchored, best is None, key.fold(turn))
            found = judged(problem, within(problem.space, candidates))
            best = found.beside(best, 1)
            weighed = weights(found.cost, self.temperature)[:, :, None, None] * found.actions
            mean = within(problem.space, weighed.sum(1))
        assert best is not None
        last = around(problem.space, mean[:, None], self.anchored, False, key)
        return judged(problem, within(problem.space, last)).beside(best, 1).plan()


def weights(cost: Cost, temperature: float) -> Tensor:
    """(B, S), of sum 1: exp(-(cost - the least cost) / temperature), of those alone that violate least."""
    allowed = cost.violation == cost.violation.amin(1, keepdim=True)
    value = torch.where(allowed, cost.value, torch.inf)
    least = value.amin(1, keepdim=True)
    away = torch.where(value == least, 0.0, value - least)  # also where all of them are infinite
    return (-away / temperature).softmax(dim=1)
