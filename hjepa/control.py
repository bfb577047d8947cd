"""Acting: where a stack stands, as a problem for planners.

What has been observed goes up through the levels, and each level's clock is set so that its last window ends now. From there a
plan goes forward in steps of its level; the level above sees it through windows that are counted back from its end. Nothing
here knows a planner, a cost, or which of the levels plans first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hjepa.compose import Node
from hjepa.contracts import ActionSpace, Batch, Cost, CostTerm, States
from hjepa.errors import Mistake, listed, nearest
from hjepa.nn.states import followed, joined, windows
from hjepa.stack import Stack, stream_states

Weighted = tuple[CostTerm, float | Tensor]
"""A cost, and its weight: a number, or one for each task (B,)."""


CACHE = 1 << 22
"""Bytes of the states of one step that many trajectories may have, so that a CPU finds them in its cache for the next one."""
MEMORY = 1 << 32
"""Bytes of the states of all steps of them, on a GPU."""


def perceived(stack: Stack, source: str, observed: Batch, labels: Collection[str] | None = None) -> dict[str, States]:
    """The states of each level of which enough is observed; the last one is now. Observations may have any number of steps.

    `labels`: the levels that somebody asks for; they and those below them are encoded, and no others. All are where it is left out.
    """
    seen: dict[str, States] = {}
    wanted = set(stack.nodes if labels is None else labels)
    for label, node in reversed(stack.nodes.items()):
        if label in wanted:
            wanted.update(node.reads)
    for label, node in stack.nodes.items():
        if label in wanted and all(
            name in seen or (name in stack.composer.streams[source] and name in observed) for name in node.reads
        ):
            read = joined([_read(stack, source, observed, seen, name) for name in node.reads])
            if read.steps >= node.window:
                starts = range((read.steps - node.window) % node.stride, read.steps - node.window + 1, node.stride)
                level: Any = stack.levels[label]
                seen[label] = level.encode(windows(read, list(starts), node.stride, node.window))
    return seen


def _read(stack: Stack, source: str, observed: Batch, seen: Mapping[str, States], name: str) -> States:
    """A level, or a stream with the number of steps that was observed."""
    if name in seen:
        return seen[name]
    spec = stack.composer.streams[source][name]
    steps = observed[name].shape[1] if spec.steps > 1 else 1
    ticks = tuple(spec.clock * step for step in range(steps))
    return stream_states(observed, name, replace(spec, ticks=ticks, actions=spec.actions if "actions" in observed else 0))


def space(stack: Stack, label: str, actions: ActionSpace) -> ActionSpace:
    """What can be done in one step of a level, where `actions` is what can be done in one step of its source."""
    node = stack.nodes[label]
    level: Any = stack.levels[label]
    below = space(stack, node.reads[0], actions) if node.reads[0] in stack.nodes else actions
    low, high = (bound.repeat(node.stride) for bound in (below.low, below.high))
    chunk = below if node.stride == 1 else ActionSpace(low, high, joined=node.stride * below.joined)
    return level.space(chunk) if hasattr(level, "space") else chunk


@dataclass(frozen=True)
class Problem:
    """One level of a stack, as planners see it (the protocol PlanningProblem)."""

    stack: Stack
    node: Node
    start: States
    """(B, T, N, D): what is known; the last step is now."""
    horizon: int
    space: ActionSpace
    costs: Sequence[Weighted]
    goal: States | None
    """(B, 1, N, D)."""
    condition: Tensor | None
    """(B, 1, C)."""
    above: Problem | None
    waypoint: States | None = None
    """(B, 1, N, D) of the level above: where its next step shall lead."""

    @property
    def batch(self) -> int:
        """B, how many tasks there are."""
        return len(self.start.time)

    @property
    def at_once(self) -> int:
        """As many as have room in a cache, on a GPU in a part of its memory."""
        tokens = self.start.tokens
        room = CACHE if tokens.device.type == "cpu" else MEMORY // self.horizon
        return max(1, room // (tokens[0, 0].numel() * tokens.element_size()))

    @property
    def now(self) -> States:
        """(B, 1, N, D): where the tasks stand, which is seen, and so not doubted."""
        now = self.start.slice(self.start.steps - 1, self.start.steps)
        return replace(now, doubt=torch.zeros_like(now.tokens[..., 0]))

    @property
    def _level(self) -> Any:
        return self.stack.levels[self.node.label]

    def begin(self) -> Any:
        """The carry of B tasks before anything is done."""
        return {"now": self.start.time[:, -1:], "level": self._level.start(self.start, self.condition)}

    def step(self, carry: Any, action: Tensor) -> tuple[States, Any]:
        """One step (R, A) of each row of the carry -> states (R, 1, N, D), and the carry after it."""
        tokens, level = self._level.step(carry["level"], action)
        now = carry["now"] + self._level.spec.clock
        doubt = self._level.doubt(level) if hasattr(self._level, "doubt") else None
        states = States(tokens[:, None], now, self.start.grid, doubt=None if doubt is None else doubt[:, None])
        return states, {"now": now, "level": level}

    def rollout(self, actions: Tensor) -> States:
        """Candidates (B, S, K, A) -> trajectory (B*S, K, N, D)."""
        rows = self._rows(actions.shape[0] * actions.shape[1])
        condition = None if self.condition is None else self.condition[rows]
        rolled: States = self._level.rollout(self.start.rows(rows), actions.flatten(0, 1), actions.shape[2], condition)
        return rolled

    def cost(self, trajectory: States) -> Cost:
        """Trajectory (B*S, K, N, D) -> (B, S): the costs of the level, and those above of how far a waypoint is.

        Where nothing counts at the level, and no waypoint is given, it is judged by what counts above.
        """
        cost = self._cost(trajectory, self.goal)
        if self.above is None or (self.waypoint is None and self.costs):
            return cost
        up = self.up(trajectory)
        further = self.above.cost(up) if self.waypoint is None else self.above._cost(up, self.waypoint)
        return Cost(cost.value + further.value, cost.violation + further.violation)

    def _cost(self, trajectory: States, goal: States | None) -> Cost:
        rows = self._rows(len(trajectory.time))
        start = self.now.rows(rows)
        value = violation = trajectory.tokens.new_zeros(len(rows))
        for term, weight in self.costs:
            found = term(trajectory, None if goal is None else goal.rows(rows), start)
            value = value + found.value * (weight[rows] if isinstance(weight, Tensor) else weight)
            violation = violation + found.violation
        return Cost(value.view(self.batch, -1), violation.view(self.batch, -1))

    def up(self, trajectory: States) -> States:
        """The states of the level above that a trajectory leads through, the last of which ends where it does."""
        if self.above is None:
            raise Mistake(f"no level above {self.node.label!r} is planned with")
        node, known = self.above.node, self.start.steps
        whole = followed(self.start.rows(self._rows(len(trajectory.time))), trajectory)
        ends = range(whole.steps - 1, max(known, node.window - 1) - 1, -node.stride)
        starts = [end - node.window + 1 for end in reversed(ends)]
        states: States = self.above._level.encode(windows(whole, starts, node.stride, node.window))
        return replace(states, doubt=torch.zeros_like(states.tokens[..., 0]))  # read, not predicted there

    def towards(self, waypoint: States) -> Problem:
        """One step of the level above, which shall lead to `waypoint`; guardrails stay, the goal does not.

        Mistake where nothing says how far a state of that level is from another.
        """
        if self.above is None:
            raise Mistake(f"no level above {self.node.label!r} is planned with")
        if not self.above.costs:
            label = self.above.node.label
            raise Mistake(f"nothing counts at {label!r}, so how far its waypoints are is not known; name a cost of that level")
        return replace(self, goal=None, waypoint=waypoint, horizon=self.above.node.stride)

    def unfolded(self, action: Tensor) -> Tensor | None:
        """The steps (B, K, A) that an action (B, A') of the level above stands for, where they lie side by side in it."""
        if self.above is None:
            raise Mistake(f"no level above {self.node.label!r} is planned with")
        steps = self.above.node.stride
        joined = steps > 1 and self.above.space.joined == steps * self.space.joined
        return action.view(len(action), steps, -1) if joined else None

    def _rows(self, count: int) -> Tensor:
        """(count,): the task that each of `count` candidates belongs to."""
        return torch.arange(self.batch, device=self.start.time.device).repeat_interleave(count // self.batch)


def problem(
    stack: Stack,
    source: str,
    horizons: Mapping[str, int],
    observed: Batch,
    goal: Batch | None,
    costs: Mapping[str, Sequence[Weighted]],
    actions: ActionSpace,
) -> Problem:
    """B tasks: `observed` up to now, to come to what `goal` shows, by `actions` in the world.

    `horizons` says which levels plan, from the lowest to the highest, and how many own steps far; `costs` what counts at each.
    Mistake where a level cannot be planned with, or too little is seen of it.
    """
    above: Problem | None = None
    seen, wanted = perceived(stack, source, observed), perceived(stack, source, goal or {})
    for label in reversed(list(horizons)):
        if label not in stack.nodes:
            raise Mistake(f"no level {label!r}{nearest(label, stack.nodes)} (there are: {listed(stack.nodes)})")
        node = stack.nodes[label]
        _refuse(stack, node, above, observed, seen, wanted if goal else seen)
        condition = node.plan.keys.condition
        above = Problem(
            stack=stack,
            node=node,
            start=seen[label],
            horizon=horizons[label],
            space=space(stack, label, actions),
            costs=costs.get(label, ()),
            goal=wanted[label].slice(wanted[label].steps - 1, wanted[label].steps) if goal else None,
            condition=None if condition is None else _read(stack, source, observed, seen, condition).tokens.mean(2)[:, -1:],
            above=above,
        )
    if above is None:
        raise Mistake(f"no level to plan with is named (there are: {listed(stack.nodes)})")
    return above


def _refuse(
    stack: Stack,
    node: Node,
    above: Problem | None,
    observed: Batch,
    seen: Mapping[str, States],
    wanted: Mapping[str, States],
) -> None:
    lacking = [method for method in ("start", "step", "rollout") if not hasattr(stack.levels[node.label], method)]
    if lacking:
        raise Mistake(f"level {node.label!r} cannot be planned with: it has no {listed(lacking)}")
    if above is not None and above.node.reads != (node.label,):
        said = f"level {above.node.label!r} reads {listed(above.node.reads)}"
        raise Mistake(f"{said}, so {node.label!r} alone cannot reach for it")
    condition = node.plan.keys.condition
    if condition is not None and condition not in seen and condition not in observed:
        raise Mistake(f"level {node.label!r} is conditioned on {condition!r}, of which too little is seen, or nothing at all")
    for what, states in (("observed", seen), ("shown of the goal", wanted)):
        if node.label not in states:
            raise Mistake(f"too little is {what} for level {node.label!r}: one step needs {stack.composer.frames(node, 1)[1]}")
