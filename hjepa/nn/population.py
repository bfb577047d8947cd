"""What planners share that judge many plans at a time: bounds are kept, the best seen are kept, and whatever has no cost ranks last.

Where a space has anchors, plans are made of actions near these: elsewhere a model was never trained, and a planner finds out where it
is wrong in its favour (Hi-LeWM, arXiv:2607.12547).

B tasks    S candidates    E elites    K steps    A width of an action    R anchors
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Cost, Plan, PlanningProblem
from hjepa.randomness import Key, integers, uniform

TINY = 1e-9
"""What a distance is divided by at least."""
SLIGHT = 1e-3
"""A dimension in which anchors spread by a smaller share than this of where they do most is as good as constant."""
PAIRS = 1 << 24
"""Distances that are taken at once, so that many plans need little memory."""


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
    """Candidates (B, S, K, A) by what they cost."""
    parts = torch.split(candidates, max(1, problem.at_once // problem.batch), dim=1)
    costs = [problem.cost(problem.rollout(part)) for part in parts]
    value, violation = (torch.cat([getattr(cost, name) for cost in costs], dim=1) for name in ("value", "violation"))
    return ranked(candidates, Cost(value, violation))


def ranked(candidates: Tensor, cost: Cost) -> Ranked:
    """Candidates (B, S, K, A), best first; a cost that is not a number is infinite."""
    cost = Cost(cost.value.nan_to_num(torch.inf, torch.inf), cost.violation.nan_to_num(torch.inf, torch.inf))
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
    """(A,): half of the way from the lowest to the highest, or the standard deviation of the anchors."""
    if space.anchors is not None:
        spread = space.anchors.std(dim=0, correction=0)
        return spread.maximum(SLIGHT * spread.max()).clamp(min=TINY)
    return (space.high - space.low) / 2


def begun(problem: PlanningProblem, warm: Plan | None) -> Tensor:
    """(B, K, A): what is tried first: the plan before, as far as it goes, and then the middle of what can be done, or of anchors."""
    space = problem.space
    middle = (space.low + space.high) / 2 if space.anchors is None else near(space, space.anchors.mean(dim=0, keepdim=True))[0]
    middle = middle.expand(problem.batch, problem.horizon, -1)
    if warm is None:
        return middle.clone()
    known = warm.actions[:, : problem.horizon]
    return within(space, torch.cat((known, middle[:, known.shape[1] :]), dim=1))


def anywhere(space: ActionSpace, key: Key, stream: str, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape, A): anchors where there are any, else evenly from all that can be done."""
    if space.anchors is not None:
        return space.anchors[integers(key, stream, 0, len(space.anchors), shape)]
    return space.low + (space.high - space.low) * uniform(key, stream, (*shape, len(space.low)))


def around(space: ActionSpace, candidates: Tensor, share: float, first: bool, key: Key) -> Tensor:
    """Candidates (B, S, K, A), the first of which is what the others were drawn around, as they are where there are no anchors.

    Else the first population is anchors, all but that one; later ones are near anchors, from the last on, as many as `share` says.
    """
    if space.anchors is None:
        return candidates
    if first:
        drawn = anywhere(space, key, "anchors", (candidates.shape[1] - 1, candidates.shape[2]))
        return torch.cat((candidates[:, :1], drawn), dim=1)
    free = candidates.shape[1] - round(share * candidates.shape[1])
    return torch.cat((candidates[:, :free], near(space, candidates[:, free:])), dim=1)


def near(space: ActionSpace, actions: Tensor) -> Tensor:
    """(..., A), each drawn towards the nearest anchor until it is no further from it than anchors are from one another.

    That is the median over anchors of how far the next one is, in standard deviations: 0 where the same few are done again and again.
    """
    assert space.anchors is not None
    scale, rows = reach(space), actions.flatten(0, -2)
    known, most = space.anchors / scale, max(1, PAIRS // len(space.anchors))
    apart = _distances(known[:most], known).fill_diagonal_(torch.inf).amin(dim=1).median().nan_to_num(posinf=0.0)
    closest = torch.cat([_distances(part, known).argmin(dim=1) for part in torch.split(rows / scale, most)])
    away = rows - space.anchors[closest]
    length = (away / scale).norm(dim=1, keepdim=True)
    return (space.anchors[closest] + away * (apart / length.clamp(min=TINY)).clamp(max=1)).view_as(actions)


def _distances(rows: Tensor, anchors: Tensor) -> Tensor:
    """(rows, R). Each row by itself, bit for bit, whatever is beside it."""
    return torch.cdist(rows, anchors, compute_mode="donot_use_mm_for_euclid_dist")
