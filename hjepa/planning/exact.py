"""A level that plans with the world itself as its model, while it perceives, wants and judges as it has learned.

Where a hierarchy fails, this says which level fails: with an exact model of one level after the other, the goals that are missed because
of what that level learned of its world are reached. What costs something is to draw what would be seen, so that no more is drawn than
the level looks at, and only so much at a time.

    B tasks    S candidates    K steps of the level
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Batch, Environment, States
from hjepa.control import Problem, perceived
from hjepa.errors import Mistake

ROOM = 1 << 24
"""Bytes of what would be seen that are perceived at once."""


@dataclass(frozen=True, kw_only=True)
class Exact(Problem):
    """One level of a stack, as planners see it; its actions are those of the world that are done in one of its steps, side by side."""

    world: Environment
    """The tasks as they stand now."""
    source: str
    """That of the streams which the world shows."""
    observed: Batch
    """What was seen up to now: as many steps (B, T, ...) as one state of the level needs, or more."""
    clock: int
    """Steps of the world in one of the level."""

    def begin(self) -> Any:
        return {"done": self.start.tokens.new_zeros(self.batch, 0, len(self.space.low))}

    def step(self, carry: Any, action: Tensor) -> tuple[States, Any]:
        """As `rollout` of all that the carry has done, and its last state: the world says only what follows from where it stands."""
        done = torch.cat((carry["done"], action[:, None]), dim=1)
        steps = done.shape[1]
        return self._after(done.view(self.batch, -1, *done.shape[1:]), range(steps, steps + 1)), {"done": done}

    def rollout(self, actions: Tensor) -> States:
        return self._after(actions, range(1, actions.shape[2] + 1))

    def _after(self, actions: Tensor, steps: range) -> States:
        """The states (B*S, steps, N, D) after those of the steps of candidates (B, S, K, A), from 1."""
        if actions.requires_grad:
            said = "what the world shows has no gradient; name a planner that needs none"
            raise Mistake(f"level {self.node.label!r} has the world itself as its model: {said}")
        picture = sum(value.shape[2:].numel() * value.element_size() for value in self.observed.values())
        states = ROOM // (picture * self._needed * self.batch)
        long = min(max(1, states), len(steps))
        many = max(1, states // long)
        parts = [
            torch.cat([self._tokens(some, steps[first : first + long]) for some in torch.split(actions, many, dim=1)], dim=1)
            for first in range(0, len(steps), long)
        ]
        tokens = torch.cat(parts, dim=2).flatten(0, 1)
        passed = self.clock * torch.tensor(steps, device=tokens.device)
        time = self.start.time[self._rows(len(tokens)), -1:] + passed
        return States(tokens, time, self.start.grid, doubt=torch.zeros_like(tokens[..., 0]))

    def _tokens(self, actions: Tensor, steps: Sequence[int]) -> Tensor:
        """(B, S, steps, N, D): each state from the steps of the world alone that its windows go back to."""
        spans = [range(self.clock * step - self._needed + 1, self.clock * step + 1) for step in steps]
        looked = sorted({moment for span in spans for moment in span})
        index = torch.tensor([[looked.index(moment) for moment in span] for span in spans], device=actions.device)
        past = [moment - 1 for moment in looked if moment <= 0]  # counted from the end of what was observed, which is moment 0
        moves = actions.reshape(*actions.shape[:2], -1, len(self.world.actions.low))[:, :, : self.clock * steps[-1]]
        seen = self.world.foreseen(moves, [moment for moment in looked if moment > 0])
        rows = self._rows(moves.shape[0] * moves.shape[1])
        whole = {name: torch.cat((self.observed[name][:, past][rows], value), dim=1) for name, value in seen.items()}
        spanned = {name: value[:, index].flatten(0, 1) for name, value in whole.items()}
        tokens = perceived(self.stack, self.source, spanned, [self.node.label])[self.node.label].tokens[:, -1]
        return tokens.view(*actions.shape[:2], len(steps), *tokens.shape[1:])

    @property
    def _needed(self) -> int:
        """Steps of the world that one state is perceived from."""
        return self.stack.composer.frames(self.node, 1)[0]


def posed(
    problem: Problem, labels: Collection[str], world: Environment, source: str, observed: Batch, actions: ActionSpace
) -> Problem:
    """The same tasks, where the levels of these labels have the world itself as their model; `actions` can be done in a step of it."""
    above = None if problem.above is None else posed(problem.above, labels, world, source, observed, actions)
    if problem.node.label not in labels:
        return replace(problem, above=above)
    clock = problem.stack.composer.spec(problem.node.label, source).clock
    space = ActionSpace(actions.low.repeat(clock), actions.high.repeat(clock), joined=clock)
    same = {field.name: getattr(problem, field.name) for field in fields(problem)}
    return Exact(**same | {"above": above, "space": space}, world=world, source=source, observed=observed, clock=clock)
