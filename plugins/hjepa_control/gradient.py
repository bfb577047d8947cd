"""Plans that follow the gradient of their cost through the model (LeCun 2022, section 3.1.2; Adam, arXiv:1412.6980)."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import Cost, Count, Fraction, NonNegative, Plan, PlanningProblem, Positive
from hjepa.nn.population import TINY, Ranked, around, begun, judged, ranked, reach, within
from hjepa.randomness import Key, normal


class Gradient:
    """starts: plans that are followed side by side, the one before among them; iterations: steps of each; spread: standard deviation
    of the starts around it, rate: the length of a step of Adam, both as shares of half the range of an action; anchored: as of `cem`.

    What is violated is added to what a plan costs, so that there is a way out; plans rank by violation first as everywhere.
    """

    def __init__(
        self,
        *,
        starts: Count = 8,
        iterations: Count = 20,
        spread: NonNegative = 0.5,
        rate: Positive = 0.1,
        anchored: Fraction = 1.0,
    ) -> None:
        self.starts, self.iterations, self.spread, self.rate, self.anchored = starts, iterations, spread, rate, anchored

    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        """The best plan that was seen on any of the ways."""
        first, half = begun(problem, warm), reach(problem.space)
        noise = self.spread * normal(key, "starts", (self.starts, *first.shape[1:]))
        noise[:, 0] = 0
        starts = around(problem.space, first[:, None] + half * noise, self.anchored, True, key)
        half = half.clamp(min=TINY)  # of what can only be done in one way
        ways = within(problem.space, starts) / half
        follow, best = torch.optim.Adam([ways], lr=self.rate), None
        for _ in range(self.iterations):
            best = self._followed(problem, ways, half, follow, best, key)
        with torch.no_grad():
            return judged(problem, within(problem.space, half * ways)).beside(best, 1).plan()

    def _followed(
        self,
        problem: PlanningProblem,
        ways: Tensor,
        half: Tensor,
        follow: torch.optim.Adam,
        best: Ranked | None,
        key: Key,
    ) -> Ranked:
        """One step of each way; the best plan so far."""
        actions = within(problem.space, half * ways).requires_grad_()
        with torch.enable_grad():
            cost = problem.cost(problem.rollout(actions))
            total = (cost.value + cost.violation).nan_to_num(
                0.0, 0.0, 0.0
            ).sum() + 0 * actions.sum()  # a cost may know no actions
            (downhill,) = torch.autograd.grad(total, [actions])
        with torch.no_grad():
            ways.grad = half * downhill.nan_to_num(0.0, 0.0, 0.0)
            found = ranked(actions.detach(), Cost(cost.value.detach(), cost.violation.detach())).beside(best, 1)
            follow.step()
            ways.copy_(within(problem.space, around(problem.space, half * ways, self.anchored, False, key)) / half)
        return found
