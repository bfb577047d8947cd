"""The world itself as the model that plans are made with: what a planner can do where nothing had to be learned.

Its states are places. At the level above, an action is where to go in `stride` steps of the level below, straight on: walls stop it
as they stop any other.

    B tasks    S candidates    K steps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Cost, CostTerm, States
from hjepa_control.walls import cut, moved

MANY = 1 << 16
"""Trajectories of places, which are small."""


@dataclass(frozen=True)
class Truth:
    """A problem (the protocol PlanningProblem) of tasks in rooms; walls stop a dot at their face, and throw nothing back."""

    boxes: Tensor
    """(B, M, 4): the walls."""
    place: Tensor
    """(B, 2): where the dots are."""
    goal: Tensor
    """(B, 2)."""
    fastest: float
    """The longest step of the world."""
    horizon: int
    costs: Sequence[tuple[CostTerm, float]]
    """What counts, and by which weight."""
    stride: int = 1
    """Steps of the world in one of this level."""
    above: Truth | None = None

    @property
    def batch(self) -> int:
        return len(self.place)

    @property
    def at_once(self) -> int:
        return MANY

    @property
    def space(self) -> ActionSpace:
        furthest = torch.full((2,), self.stride * self.fastest, device=self.place.device)
        return ActionSpace(-furthest, furthest)

    @property
    def now(self) -> States:
        """(B, 1, 1, 2): where the dots are."""
        return _places(self.place[:, None])

    def begin(self) -> Any:
        return {"place": self.place, "boxes": self.boxes}

    def step(self, carry: Any, action: Tensor) -> tuple[States, Any]:
        place, part = carry["place"], cut(action / self.stride, self.fastest)
        for _ in range(self.stride):
            place = moved(carry["boxes"], place, part, place.new_zeros(len(place)))
        return _places(place[:, None]), carry | {"place": place}

    def rollout(self, actions: Tensor) -> States:
        rows = torch.arange(self.batch, device=actions.device).repeat_interleave(actions.shape[1])
        carry, places = {"place": self.place[rows], "boxes": self.boxes[rows]}, []
        for action in actions.flatten(0, 1).unbind(dim=1):
            states, carry = self.step(carry, action)
            places.append(states.tokens)
        return _places(torch.cat(places, dim=1)[:, :, 0])

    def cost(self, trajectory: States) -> Cost:
        goals = _places(self.goal.repeat_interleave(len(trajectory.time) // self.batch, 0)[:, None])
        start = self.now.rows(
            torch.arange(self.batch, device=self.goal.device).repeat_interleave(len(goals.time) // self.batch)
        )
        found = [(term(trajectory, goals, start), weight) for term, weight in self.costs]
        value = torch.stack([weight * cost.value for cost, weight in found]).sum(0)
        violation = torch.stack([cost.violation for cost, _ in found]).sum(0)
        return Cost(value.view(self.batch, -1), violation.view(self.batch, -1))

    def towards(self, waypoint: States) -> Truth:
        assert self.above is not None
        return replace(self, goal=waypoint.tokens[:, 0, 0], horizon=self.above.stride // self.stride)

    def unfolded(self, action: Tensor) -> Tensor:
        """Straight on, at one pace."""
        assert self.above is not None
        steps = self.above.stride // self.stride
        return cut(action / steps, self.stride * self.fastest)[:, None].expand(-1, steps, -1)


def _places(places: Tensor) -> States:
    """(R, K, 2) as states (R, K, 1, 2)."""
    time = torch.arange(1, places.shape[1] + 1, device=places.device).expand(len(places), -1)
    return States(places[:, :, None], time)
