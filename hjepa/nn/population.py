"""What planners share that judge many plans at a time: bounds are kept, the best seen are kept, and whatever has no cost ranks last.

B tasks    S candidates    E elites    K steps    A width of an action
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Cost, Plan, PlanningProblem
from hjepa.randomness import Key, integers, uniform


@dataclass(frozen=True)
class Ranked:
    """Candidates, best first, and what each costs."""

    actions: Tensor
    """(B, E, K, A)."""
    cost: Cost
    """(B, E)."""

    def first(self, count: int) -> Ranked:
        """The best of them."""
        return Ranked(self.actions[:, :count], Cost(self.cost.value[:, :count], self.cost.violation[:, :count]))

    def beside(self, other: Ranked | None, count: int) -> Ranked:
        """The best of both."""
        if other is None:
            return self.first(count)
        value, violation = (
            torch.cat((getattr(self.cost, name), getattr(other.cost, name)), 1) for name in ("value", "violation")
        )
        return ranked(torch.cat((self.actions, other.actions), dim=1), Cost(value, violation)).first(count)

    def plan(self) -> Plan:
        """The best of all."""
        best = self.first(1)
        return Plan(best.actions[:, 0], best.cost)


def judged(problem: PlanningProblem, candidates: Tensor) -> Ranked:
    """Candidates (B, S, K, A) by what they cost; a cost that is not a number is infinite."""
    cost = problem.cost(problem.rollout(candidates))
    return ranked(
        candidates, Cost(cost.value.nan_to_num(torch.inf, torch.inf), cost.violation.nan_to_num(torch.inf, torch.inf))
    )


def ranked(candidates: Tensor, cost: Cost) -> Ranked:
    """Candidates (B, S, K, A), best first."""
    best = order(cost)
    actions = candidates.gather(1, best[:, :, None, None].expand_as(candidates))
    return Ranked(actions, Cost(cost.value.gather(1, best), cost.violation.gather(1, best)))


def order(cost: Cost) -> Tensor:
    """(B, S): the candidates of each task, best first."""
    by_value = cost.value.argsort(dim=1, stable=True)
    return by_value.gather(1, cost.violation.gather(1, by_value).argsort(dim=1, stable=True))


def within(space: ActionSpace, actions: Tensor) -> Tensor:
    """(..., A), each within its bounds."""
    return actions.clamp(space.low, space.high)


def reach(space: ActionSpace) -> Tensor:
    """(A,): half of the way from the lowest to the highest."""
    return (space.high - space.low) / 2


def begun(problem: PlanningProblem, warm: Plan | None) -> Tensor:
    """(B, K, A): what is tried first: the plan before, as far as it goes, and then the middle of what can be done."""
    space = problem.space
    middle = ((space.low + space.high) / 2).expand(problem.batch, problem.horizon, -1)
    if warm is None:
        return middle.clone()
    known = warm.actions[:, : problem.horizon]
    return within(space, torch.cat((known, middle[:, known.shape[1] :]), dim=1))


def anywhere(space: ActionSpace, key: Key, stream: str, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape, A): anchors where there are any, else evenly from all that can be done."""
    if space.anchors is not None:
        return space.anchors[integers(key, stream, 0, len(space.anchors), shape)]
    return space.low + (space.high - space.low) * uniform(key, stream, (*shape, len(space.low)))
