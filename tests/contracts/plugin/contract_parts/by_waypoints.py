"""Plans at the top first; each level below reaches for the next state of the plan above it (LeCun 2022, section 4.7; HWM)."""

from __future__ import annotations

from hjepa.contracts import Build, Plan, Planner, PlanningProblem
from hjepa.randomness import Key


class ByWaypoints:
    """inner: the planner of every level."""

    def __init__(self, *, inner: Build[Planner]) -> None:
        self.inner = inner()

    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        if problem.above is None:
            return self.inner.plan(problem, warm, key)
        far = self.plan(problem.above, None, key.fold("above"))
        waypoint = problem.above.rollout(far.actions[:, None]).slice(0, 1)
        return self.inner.plan(problem.towards(waypoint), warm, key)
