"""Problems to plan for: steps that add up, with a cost whose least value is known; and rooms, with the truth as the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Cost, Spec, States
from hjepa.randomness import Key
from hjepa_control.distance import Distance
from hjepa_control.truth import Truth
from hjepa_control.two_rooms import TwoRooms

Valued = Callable[[Tensor, Tensor], Cost]
"""Places (R, K, 2) and goals (R, 2) -> a cost (R,)."""


def quadratic(places: Tensor, goals: Tensor) -> Cost:
    """How far the end is from the goal, squared."""
    value = (places[:, -1] - goals).square().sum(-1)
    return Cost(value, torch.zeros_like(value))


SPACE = ActionSpace(torch.tensor([-1.0, -0.5]), torch.tensor([1.0, 2.0]))


@dataclass
class Toy:
    """From the origin to goals (B, 2); an action is a step."""

    goals: Tensor
    horizon: int = 4
    space: ActionSpace = SPACE
    valued: Valued = quadratic
    above: None = None
    at_once: int = 1 << 16
    asked: int = 0
    """How many candidates were rolled out."""

    @property
    def batch(self) -> int:
        return len(self.goals)

    def begin(self) -> Any:
        return {"place": torch.zeros_like(self.goals)}

    def step(self, carry: Any, action: Tensor) -> tuple[States, Any]:
        place = carry["place"] + action
        return states(place[:, None]), {"place": place}

    def rollout(self, actions: Tensor) -> States:
        assert (actions >= self.space.low - 1e-6).all() and (actions <= self.space.high + 1e-6).all(), "P33"
        self.asked += actions.shape[1]
        return states(actions.flatten(0, 1).cumsum(1))

    def cost(self, trajectory: States) -> Cost:
        places = trajectory.tokens[:, :, 0]
        cost = self.valued(places, self.goals.repeat_interleave(len(places) // self.batch, 0))
        return Cost(cost.value.view(self.batch, -1), cost.violation.view(self.batch, -1))

    def towards(self, waypoint: States) -> Any:
        raise NotImplementedError


def states(places: Tensor) -> States:
    return States(places[:, :, None], torch.arange(1, places.shape[1] + 1).expand(len(places), -1))


ROOMS = TwoRooms(0, rebound=0.0)
KEY = Key.of(1).fold(torch.arange(20))
COSTS = [(Distance(Spec(2), saturation=64.0), 1.0)]


def posed(horizon: int = 12, stride: int = 1, above: Truth | None = None, count: int = 20) -> Truth:
    ROOMS.reset(ROOMS.tasks(Key(KEY.word[:count])))
    return ROOMS.truth(horizon, COSTS, stride, above)
