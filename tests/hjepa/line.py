"""A world on a line: what is done is where it goes. Its task is a start and a goal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Batch, Cost, Plan, PlanningProblem, States
from hjepa.nn.population import anywhere, judged
from hjepa.randomness import Key, uniform

NEAR = 0.5


class Line:
    """B dots; `seed` shifts the tasks that it draws."""

    columns = ("start", "goal")

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.actions = ActionSpace(-torch.ones(1), torch.ones(1))

    def tasks(self, key: Key, nearest: float = 0.0, furthest: float = torch.inf) -> Tensor:
        start = 10 * uniform(key, "start", (1,))
        return torch.cat((start, start + min(max(nearest, 4.0), furthest)), dim=1)

    def reset(self, task: Tensor) -> Batch:
        self.place, self.end = task[:, :1], task[:, 1:]
        return self._seen(self.place)

    def goal(self) -> Batch:
        return self._seen(self.end)

    def step(self, action: Tensor) -> tuple[Batch, Tensor]:
        self.place = self.place + action
        return self._seen(self.place), (self.place - self.end).abs()[:, 0] < NEAR

    def straight(self) -> Tensor:
        return (self.end - self.place).clamp(-1, 1)

    def reaches(self, actions: Tensor) -> Tensor:
        ways = self.place[:, None] + actions[..., 0].cumsum(2)
        return ((ways - self.end[:, None]).abs() < NEAR).flatten(1).any(1)

    def truth(self, horizon: int, costs: Any, stride: int = 1, above: Any = None) -> Truth:
        return Truth(self.place, self.end, horizon, stride, above)

    def _seen(self, place: Tensor) -> Batch:
        return {"frames": place[:, None, None, None].expand(-1, 1, 1, 4, 4), "position": place[:, None]}


@dataclass(frozen=True)
class Truth:
    """The line as its own model."""

    place: Tensor
    end: Tensor
    horizon: int
    stride: int = 1
    above: PlanningProblem | None = None

    @property
    def batch(self) -> int:
        return len(self.place)

    @property
    def at_once(self) -> int:
        return 1 << 16

    @property
    def space(self) -> ActionSpace:
        return ActionSpace(-self.stride * torch.ones(1), self.stride * torch.ones(1))

    @property
    def now(self) -> States:
        return States(self.place[:, None, None], torch.zeros(self.batch, 1))

    def begin(self) -> Any:
        return self.place

    def step(self, carry: Any, action: Tensor) -> tuple[States, Any]:
        return States((carry + action)[:, None, None], torch.zeros(len(carry), 1)), carry + action

    def rollout(self, actions: Tensor) -> States:
        ways = self.place[:, None] + actions[..., 0].cumsum(2)
        return States(ways.flatten(0, 1)[..., None, None], torch.zeros(ways[..., 0].numel(), ways.shape[2]))

    def cost(self, trajectory: States) -> Cost:
        away = (trajectory.tokens[:, :, 0, 0].view(self.batch, -1, trajectory.steps) - self.end[:, None]).abs().mean(2)
        return Cost(away, torch.zeros_like(away))

    def towards(self, waypoint: States) -> Truth:
        return replace(self, end=waypoint.tokens[:, 0, 0])


class Shooting:
    """Of a few plans the best."""

    def __init__(self, samples: int = 8) -> None:
        self.samples, self.warm = samples, []  # type: ignore[var-annotated]

    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        self.warm.append(warm)
        return judged(problem, anywhere(problem.space, key, "plans", (self.samples, problem.horizon))).plan()
