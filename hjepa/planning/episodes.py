"""Acting: tasks in a world, all at once, by whatever says what to do next; and what came of it."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Batch, Cost, Environment, Plan, Planner, PlanningProblem, States
from hjepa.flops import counted
from hjepa.keys import THIRDS
from hjepa.randomness import Key, uniform

SHOWN = 6
"""Tasks of which is kept what was seen."""


class Policy(Protocol):
    """Says what to do."""

    def __call__(self, observed: Batch, left: int) -> Tensor:
        """What was seen (B, T, ...) and done up to now, and how many steps are left -> the actions (B, K, A) of the next steps."""


@dataclass(frozen=True)
class Record:
    """What was done in B tasks, and seen."""

    reached: Tensor
    """(B, T) bool: whether the goal is reached after each step."""
    frames: list[Batch]
    """What was seen at the start and after each step, of the first few tasks (`SHOWN`): of all it would fill gigabytes."""
    position: Tensor | None = None
    """(B, T+1, P), where the world shows it."""

    @property
    def first(self) -> Tensor:
        """(B,): after how many steps each goal was reached first; one more than there are where it never was."""
        steps = self.reached.shape[1]
        return torch.where(self.reached.any(1), self.reached.int().argmax(1) + 1, steps + 1)

    def travelled(self) -> Tensor | None:
        """(B,): how long each path is, up to where its goal was reached first."""
        if self.position is None:
            return None
        steps = self.position.diff(dim=1).norm(dim=-1)
        before = torch.arange(steps.shape[1], device=steps.device) < self.first[:, None]
        return (steps * before).sum(1)


def acted(world: Environment, tasks: Tensor, policy: Policy, steps: int, every: int, memory: int = 1) -> Record:
    """Tasks (B, K), each for so many steps. The policy is asked every so many of them, and where it has not said further; it sees the
    last `memory` steps. Before the start all has been as it is there, and nothing was done.
    """
    seen = world.reset(tasks)
    still = torch.zeros(len(tasks), 1, len(world.actions.low), device=tasks.device)
    last, done = deque([seen] * memory, maxlen=memory), deque([still] * (memory - 1), maxlen=memory - 1)
    frames, positions, reached = [_of_few(seen)], [seen.get("position")], []
    ahead: list[Tensor] = []
    for step in range(steps):
        if not ahead:
            between = torch.cat([still[:, :0], *done], dim=1)
            ahead = list(policy(_beside(last) | {"actions": between}, steps - step)[:, :every].unbind(1))
        action = ahead.pop(0)
        seen, there = world.step(action)
        last.append(seen)
        done.append(action[:, None])
        frames.append(_of_few(seen))
        positions.append(seen.get("position"))
        reached.append(there)
    position = torch.cat([place for place in positions if place is not None], dim=1) if "position" in seen else None
    return Record(torch.stack(reached, dim=1), frames, position)


def _beside(frames: Collection[Batch]) -> Batch:
    """Steps as a batch (B, T, ...)."""
    return {name: torch.cat([one[name] for one in frames], dim=1) for name in next(iter(frames))}


def _of_few(seen: Batch) -> Batch:
    """That of the first few tasks, in a memory of its own."""
    return {name: value[:SHOWN].clone() for name, value in seen.items()}


def standing(seen: Batch, memory: int, actions: int) -> Batch:
    """One step (B, 1, ...) seen so many times, while nothing is done."""
    still = {name: value.expand(-1, memory, *value.shape[2:]) for name, value in seen.items()}
    first = next(iter(seen.values()))
    return still | {"actions": first.new_zeros(len(first), memory - 1, actions)}


# --- policies ---------------------------------------------------------------------------------------------------------


@dataclass
class Anything:
    """Whatever can be done, at random: a new action at every step."""

    space: ActionSpace
    key: Key
    """(B,)."""
    asked: int = 0

    def __call__(self, observed: Batch, left: int) -> Tensor:
        self.asked += 1
        share = uniform(self.key.fold(self.asked), "anything", (left, len(self.space.low)))
        return self.space.low + (self.space.high - self.space.low) * share


@dataclass
class Straight:
    """Straight towards the goal, whatever stands in the way."""

    world: Environment

    def __call__(self, observed: Batch, left: int) -> Tensor:
        return self.world.straight()[:, None]


@dataclass
class Planned:
    """What a planner finds, from where the tasks stand."""

    world: Environment
    planner: Planner
    pose: Callable[[Batch, int], PlanningProblem]
    """What was seen, and how many steps are left -> where the tasks stand."""
    key: Key
    """(B,)."""
    every: int
    """Steps of the world between two plans."""
    clock: int = 1
    """Steps of the world in one of the lowest level that plans."""
    tally: Counter[int] = field(default_factory=Counter)
    """How often each level predicted a step, the lowest being 0."""
    work: dict[int, float] = field(default_factory=dict)
    """Floating-point operations of one predicted step."""
    seconds: float = 0.0
    asked: int = 0
    warm: Plan | None = None
    expected: tuple[PlanningProblem, States] | None = None
    """Where the tasks stood at the last decision, and where the model said that what was chosen leads by now."""
    surprises: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """For each decision but the first, squared distances (B,) of where they stand now: from what was expected, from where they stood."""
    costs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """For each decision but the first, the cost (B,) of standing where it was expected, and of standing where the tasks stand now: both as
    the decision before judged, for a level above that looks back would else see what came in what was promised."""
    left: list[int] = field(default_factory=list)
    """For each decision, how many steps of the world were left."""
    waypoints: list[dict[int, States]] = field(default_factory=list)
    """For each decision, where each level but the highest was sent: states of the level above it."""
    found: Tensor | None = None
    """(B,) bool: whether any candidate of the first decision would have reached the goal."""

    def __call__(self, observed: Batch, left: int) -> Tensor:
        posed = self.pose(observed, left)
        self._compare(posed)
        self.work = self.work or _works(posed)
        looked = self._look if self.asked == 0 and hasattr(self.world, "reaches") else None
        watched = Watched(posed, self.tally, looked)
        begun = _now(posed)
        plan = self.planner.plan(watched, self.warm, self.key.fold(self.asked))
        self.seconds += _now(posed) - begun
        self.left.append(left)
        self.waypoints.append(watched.waypoints)
        self.asked += 1
        done = min(self.every // self.clock, plan.actions.shape[1])  # who has said no further is asked again
        self._expect(posed, plan, done)
        self.warm = plan.after(done)
        return self._unfolded(plan.actions)

    def _compare(self, posed: PlanningProblem) -> None:
        """Notes how far what was expected is from what has come."""
        if self.expected is not None:
            (earlier, expected), now = self.expected, posed.now  # type: ignore[attr-defined]
            away = [states.tokens - now.tokens for states in (expected, earlier.now)]  # type: ignore[attr-defined]
            self.surprises.append(tuple(one.float().square().flatten(1).mean(1) for one in away))  # type: ignore[arg-type]
            self.costs.append(tuple(earlier.cost(states).value[:, 0] for states in (expected, now)))  # type: ignore[arg-type]

    def _expect(self, posed: PlanningProblem, plan: Plan, steps: int) -> None:
        """What the model says of the time when it is asked again, which is after so many steps."""
        if hasattr(posed, "now"):
            with torch.no_grad():
                self.expected = posed, posed.rollout(plan.actions[:, None]).slice(steps - 1, steps)

    def _look(self, candidates: Tensor) -> None:
        """Whether any of candidates (B, S, K, A) would reach the goal, had it been chosen. No part of planning, nor of its time."""
        begun = time.perf_counter()
        reached = self.world.reaches(self._unfolded(candidates))
        self.found = reached if self.found is None else self.found | reached
        self.seconds -= time.perf_counter() - begun

    def _unfolded(self, actions: Tensor) -> Tensor:
        """Actions (..., K, clock*A) of the lowest level -> those of the world (..., K*clock, A)."""
        return actions.reshape(*actions.shape[:-2], actions.shape[-2] * self.clock, -1)

    def operations(self) -> float:
        """Of all that was predicted."""
        return sum(self.work[level] * count for level, count in self.tally.items())


def _now(problem: PlanningProblem) -> float:
    """Seconds, when all is done that a GPU was asked for."""
    if problem.space.low.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _works(problem: PlanningProblem) -> dict[int, float]:
    """What one predicted step of each level costs, in floating-point operations."""
    found: dict[int, float] = {}
    level: PlanningProblem | None = problem
    while level is not None:
        middle = (level.space.low + level.space.high) / 2
        actions = middle.expand(level.batch, 1, level.horizon, -1)
        with torch.no_grad():
            found[len(found)] = counted(partial(level.rollout, actions)) / actions[..., 0].numel()
        level = level.above
    return found


@dataclass
class Watched:
    """A problem (the protocol PlanningProblem) whose predicted steps are counted, twice where gradients are asked for: to go back through
    a step takes about as much as the step.
    """

    inner: PlanningProblem
    tally: Counter[int]
    witness: Callable[[Tensor], None] | None = None
    """Is shown all candidates (B, S, K, A)."""
    level: int = 0
    waypoints: dict[int, States] = field(default_factory=dict)
    """Where each level but the highest was sent last."""

    @property
    def batch(self) -> int:
        return self.inner.batch

    @property
    def horizon(self) -> int:
        return self.inner.horizon

    @property
    def at_once(self) -> int:
        return self.inner.at_once

    @property
    def space(self) -> ActionSpace:
        return self.inner.space

    @property
    def above(self) -> Watched | None:
        return None if self.inner.above is None else replace(self, inner=self.inner.above, witness=None, level=self.level + 1)

    def begin(self) -> Any:
        return self.inner.begin()

    def step(self, carry: Any, action: Tensor) -> tuple[States, Any]:
        self.tally[self.level] += len(action) * (1 + action.requires_grad)
        return self.inner.step(carry, action)

    def rollout(self, actions: Tensor) -> States:
        self.tally[self.level] += actions[..., 0].numel() * (1 + actions.requires_grad)
        if self.witness is not None:
            self.witness(actions.detach())
        return self.inner.rollout(actions)

    def cost(self, trajectory: States) -> Cost:
        return self.inner.cost(trajectory)

    def towards(self, waypoint: States) -> Watched:
        self.waypoints[self.level] = waypoint
        return replace(self, inner=self.inner.towards(waypoint))

    def unfolded(self, action: Tensor) -> Tensor | None:
        return self.inner.unfolded(action)


# --- scores -----------------------------------------------------------------------------------------------------------


def interval(hits: int, count: int) -> tuple[float, float]:
    """Where a share lies with 95 % confidence (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(hits, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def scores(record: Record) -> dict[str, float]:
    """Of one policy: which share of the goals was reached, and stayed at, and how long it took."""
    hit, travelled = record.reached.any(1), record.travelled()
    found = share(hit)
    found["at_the_end"] = float(record.reached[:, -1].float().mean())
    found["steps"] = float(record.first[hit].float().mean()) if hit.any() else math.nan
    if travelled is not None:
        found["path"] = float(travelled[hit].mean()) if hit.any() else math.nan
    return found


def share(hit: Tensor) -> dict[str, float]:
    """Which share of goals (...) bool was reached, and where it lies with 95 % confidence."""
    low, high = interval(int(hit.sum()), hit.numel())
    return {"success": float(hit.float().mean()), "low": low, "high": high}


def thirds(distance: Tensor) -> dict[str, Tensor]:
    """Which of tasks (B,) begin nearest to their goals, which in the middle, which furthest."""
    order = distance.argsort(stable=True)
    return {name: third for name, third in zip(THIRDS, order.tensor_split(3), strict=True) if len(third)}


def by_distance(hit: Tensor, distance: Tensor, share: Callable[[Tensor], Mapping[str, float]] = share) -> dict[str, float]:
    """Which share of goals (..., B) bool was reached of those that begin nearest, of those in the middle, of the furthest."""
    found: dict[str, float] = {}
    for name, third in thirds(distance).items():
        of = share(hit[..., third])
        found |= {name: of["success"], f"{name}_low": of["low"], f"{name}_high": of["high"]}
    return found


def cost_of(policy: Planned, tasks: int) -> dict[str, float]:
    """What a policy computed: predicted steps and floating-point operations of a task, and seconds of a decision of one."""
    found = {
        "evaluations": sum(policy.tally.values()) / tasks,
        "gigaflop": policy.operations() / tasks / 1e9,
        "seconds": policy.seconds / max(1, policy.asked) / tasks,
    }
    if policy.surprises:
        wrong, moved = (torch.stack(away).mean() for away in zip(*policy.surprises, strict=True))
        found["surprise"] = float(wrong / moved)
        # the median: a cost that is a share of the way has no bound where hardly any way was left
        found["promised"], found["paid"] = (float(torch.stack(cost).median()) for cost in zip(*policy.costs, strict=True))
    if policy.found is not None:
        found["candidate"] = float(policy.found.float().mean())
    return found
