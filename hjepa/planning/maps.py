"""What a room looks like to the levels that plan there: the cost of every place, and the place that a state stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hjepa.contracts import States
from hjepa.control import Problem
from hjepa.keys import PLANNED
from hjepa.planning import episodes

if TYPE_CHECKING:
    from hjepa.parts import Way
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
    """(R,): of a plan of the lowest level that leads there, from where the task begins."""

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
    tasks = setting.tasks[number].repeat(len(places), 1)
    tasks[:, :2] = places
    states = []
    level: Problem | None = _begun(setting, way, tasks)
    while level is not None:
        states.append(level.now)
        level = level.above
    cost = _begun(setting, way, setting.tasks[number : number + 1]).cost(states[0])
    return Map(places, states, cost.value.flatten())


def _begun(setting: Setting, way: Way, tasks: Tensor) -> Problem:
    """Where tasks (B, K) begin."""
    seen = episodes.standing(setting.world.reset(tasks), setting.memory(way), len(setting.world.actions.low))
    return setting.posed(way, seen, setting.keys.steps)
