"""Random shooting: many plans are drawn, and the best is taken. What other planners must be better than, at as many candidates."""

from __future__ import annotations

import torch

from hjepa.contracts import Count, Plan, PlanningProblem
from hjepa.nn.population import anywhere, begun, judged
from hjepa.randomness import Key


class Random:
    """samples: plans that are tried for each task, the one before among them; each step an anchor where the space has such."""

    def __init__(self, *, samples: Count = 256) -> None:
        self.samples = samples

    @torch.no_grad()
    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        """The best of the candidates."""
        candidates = anywhere(problem.space, key, "candidates", (self.samples, problem.horizon))
        candidates[:, 0] = begun(problem, warm)
        return judged(problem, candidates).plan()
