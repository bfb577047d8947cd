"""What a room looks like to the levels that plan there: the cost of every place, and the place that a state stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hjepa.contracts import States
from hjepa.control import Problem
from hjepa.keys import PLANNED
from hjepa.nn.states import followed
from hjepa.planning import episodes

if TYPE_CHECKING:
    from hjepa.planning import Setting

FINE = 48
"""Places along each side of a map."""

EDGE = 0.1
"""How much of a picture's sides is left out."""

STARTS = ("start_x", "start_y")
"""The numbers of a task that a map changes; a world whose tasks have none has no map."""


@dataclass(frozen=True)
class Map:
    """Of one task."""

    places: Tensor
    """(R, 2): all that were looked at, row by row."""
    states: list[States]
    """(R, 1, N, D) of each level that plans, the lowest first."""
    cost: Tensor
    """(R,): of a plan from where the task begins to there, at the lowest level."""

    def place_of(self, level: int, state: States) -> Tensor:
        """(2,): where the state of a level (1, 1, N, D) is most alike."""
        there = self.states[level].tokens[:, -1] - state.tokens[:, -1]
        return self.places[there.square().flatten(1).sum(1).argmin()]


@torch.no_grad()
def of_task(setting: Setting, number: int, sides: tuple[int, int]) -> Map | None:
    """The map of a task, on a picture of so many pixels; none where the world cannot be begun anywhere, or no level plans."""
    way = setting.ways.get(PLANNED)
    if way is None or tuple(setting.world.columns[:2]) != STARTS:
        return None
    along = [torch.linspace(EDGE * side, (1 - EDGE) * side, FINE) for side in sides]
    places = torch.cartesian_prod(along[0], along[1]).flip(-1).to(setting.device)
    tasks = setting.tasks[number].repeat(len(places) + 1, 1)  # the last one begins where the task does
    tasks[:-1, :2] = places
    seen = episodes.standing(setting.world.reset(tasks), setting.memory(way), len(setting.world.actions.low))
    problem = setting.posed(way, seen, setting.keys.steps)
    level: Problem | None = problem
    states = []
    while level is not None:
        states.append(level.now)
        level = level.above
    start = problem.now.rows(torch.full((len(tasks),), len(places), device=setting.device))
    cost = problem.cost(followed(start, problem.now)).value.flatten()
    here = torch.arange(len(places), device=setting.device)
    return Map(places, [state.rows(here) for state in states], cost[:-1])
