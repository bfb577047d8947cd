"""Top down: the first state of the plan above is where the level below shall go (LeCun 2022, section 4.7; HWM, arXiv:2604.03208)."""

from __future__ import annotations

from dataclasses import replace

from hjepa.contracts import Build, Plan, Planner, PlanningProblem
from hjepa.randomness import Key


class Hierarchical:
    """inner: the planner of every level; upper: of all but the lowest, where it is another one.

    Where the level above sees one step only, there is nothing to plan there: the level below goes for the goal itself, and this is its
    planner alone. Plans that were made before are followed up, at every level: who begins anew each time above goes now here, now there.
    Where it is known in which steps a level above would do what it has planned, the level below begins with these; where they lie side by
    side, a plan above is followed up from within a step, too.
    """

    def __init__(self, *, inner: Build[Planner], upper: Build[Planner] | None = None) -> None:
        self.inner = inner()
        self.upper = upper() if upper else self.inner

    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        """Of the lowest level: the steps to the first state of the plan above."""
        return self._down(problem, warm, key, self.inner)

    def _down(self, problem: PlanningProblem, warm: Plan | None, key: Key, planner: Planner) -> Plan:
        above = problem.above
        if above is None or above.horizon == 1:
            return planner.plan(problem, warm, key)
        far = self._down(above, warm and warm.above, key.fold("above"), self.upper)
        waypoint, way = above.rollout(far.actions[:, None]).slice(0, 1), problem.unfolded(far.actions[:, 0])
        if way is not None:
            far, warm = replace(far, parts=far.actions.shape[2] // way.shape[2]), Plan(way, far.cost)
        return replace(planner.plan(problem.towards(waypoint), warm, key), above=far)
