"""What travels where somebody acts, and the protocols of who takes part: worlds, planners, costs. `hjepa.contracts` gives them on, and
says what the letters of shapes mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from hjepa.contracts import Batch, States
    from hjepa.randomness import Key

# --- what travels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActionSpace:
    """What a planner may choose from at one level."""

    low: Tensor
    high: Tensor
    """(A,) each."""
    anchors: Tensor | None = None
    """(R, A): actions taken from data, so that plans stay where the model was trained."""
    joined: int = 1
    """How many actions of the world, or macro-actions of the level below that makes some, lie side by side in one, in their order."""


@dataclass(frozen=True)
class Cost:
    """What a plan costs. `violation` ranks before `value`: guardrails are constraints, not weights."""

    value: Tensor
    """(B, S)."""
    violation: Tensor
    """(B, S), 0 where nothing is violated."""


@dataclass(frozen=True)
class Plan:
    """What a planner gives: for each task the best actions it has seen, and what they cost."""

    actions: Tensor
    """(B, K, A)."""
    cost: Cost
    """(B, 1) each."""
    above: Plan | None = None
    """That of the level above, to the first state of which all K steps lead; none where nothing was planned there."""
    parts: int = 1
    """How many steps of the level below lie side by side in each of its own: it may be left between any two of them."""

    def after(self, steps: int, of: int = 1) -> Plan:
        """What is left of it, in whole steps, when so many are done, `of` of which make one of its own; and of the plans above it."""
        count, own, width = self.actions.shape
        pieces = self.actions.reshape(count, own * self.parts, width // self.parts)
        left = pieces[:, steps * self.parts // of :]
        whole = left.shape[1] // self.parts
        above = self.above and self.above.after(steps // of, max(1, own))
        return replace(self, actions=left[:, : whole * self.parts].reshape(count, whole, width), above=above)


# --- one protocol a kind ----------------------------------------------------------------------------------------------


class Environment(Protocol):
    """A world to act in, B tasks at a time, each a row of numbers (B, K): what is seen are batches with T = 1, of a `position` (B, 1, P)
    too, where there is one. Positional: the seed.
    """

    kind: ClassVar[str] = "environment"
    optional: ClassVar[tuple[str, ...]] = ("truth", "straight", "reaches", "foreseen")
    actions: ActionSpace

    @property
    def columns(self) -> tuple[str, ...]:
        """What the numbers of a task are."""

    def tasks(self, key: Key, nearest: float = 0.0, furthest: float = math.inf) -> Tensor:
        """A task for each word of the key, whose goal is that far away."""

    def reset(self, task: Tensor) -> Batch:
        """What is seen where tasks begin."""

    def goal(self) -> Batch:
        """What would be seen at their goals."""

    def step(self, action: Tensor) -> tuple[Batch, Tensor]:
        """What is seen after an action (B, A) of each, and which goals (B,) are reached."""

    def truth(
        self, horizon: int, costs: Sequence[tuple[CostTerm, float]], stride: int = 1, above: PlanningProblem | None = None
    ) -> PlanningProblem:
        """The tasks as they stand, with the world itself as the model, `stride` steps of it in one."""

    def straight(self) -> Tensor:
        """(B, A): straight towards the goal."""

    def reaches(self, actions: Tensor) -> Tensor:
        """(B,) bool: whether any of candidates (B, S, K, A) would reach the goal from here."""

    def foreseen(self, actions: Tensor, steps: Sequence[int]) -> Batch:
        """What would be seen after those of the K steps of candidates (B, S, K, A), from 1, but for chance: (B*S, steps, ...)."""


class PlanningProblem(Protocol):
    """Where B tasks start, a model of one level, a cost. Trajectories are states (B*S, K, N, D), the S of a task side by side."""

    @property
    def batch(self) -> int:
        """B."""

    @property
    def horizon(self) -> int:
        """K, how many steps a plan has."""

    @property
    def at_once(self) -> int:
        """How many trajectories are best made at once; more of them are judged in parts, so that memory is enough, and near."""

    @property
    def space(self) -> ActionSpace: ...

    @property
    def above(self) -> PlanningProblem | None:
        """The same tasks at the level above, where there is one; its steps are longer."""

    def begin(self) -> Any:
        """The carry of B tasks before anything is done: a tree of tensors whose rows may be repeated and chosen from."""

    def step(self, carry: Any, action: Tensor) -> tuple[States, Any]:
        """One step (R, A) of each row of the carry -> the states (R, 1, N, D) that it leads to, and the carry after it."""

    def rollout(self, actions: Tensor) -> States:
        """The trajectory of all steps of candidates (B, S, K, A)."""

    def cost(self, trajectory: States) -> Cost:
        """(B, S) of whole trajectories, or of their first steps."""

    def towards(self, waypoint: States) -> PlanningProblem:
        """The steps to the next state of the level above, which shall be `waypoint` (B, 1, N, D) whatever the goal is."""

    def unfolded(self, action: Tensor) -> Tensor | None:
        """The steps (B, K, A) that an action (B, A') of the level above stands for; none where many may be meant by it."""


class Planner(Protocol):
    """Finds actions. Bounds are kept, and the best seen is what is returned.
    A plan is a pure function of its own word of `key` (B,). `warm` is the plan before, where one was made for the same problem.
    """

    kind: ClassVar[str] = "planner"

    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan: ...


class CostTerm(Protocol):
    """What a predicted trajectory costs. Positional: the spec of the level whose states it sees."""

    kind: ClassVar[str] = "cost"

    def __call__(self, trajectory: States, goal: States | None, start: States) -> Cost:
        """(R,) each, of trajectory (R, K, N, D), goal (R, 1, N, D) and where plans begin, start (R, 1, N, D); 0 of what a missing
        goal leaves without meaning.
        """
