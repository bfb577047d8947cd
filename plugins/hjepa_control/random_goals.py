"""A world whose goals somebody came upon by chance: each is what is seen at the end of a walk from where its task begins.

A picture of such a goal can always be had, whatever the world, and there is a way to it: so latent planners are measured where a world
shows no picture of its own goals (DINO-WM, Zhou et al. 2024, arXiv:2411.04983; LeWorldModel, arXiv:2603.19312).

    B worlds    T = 1 step    A action width    P width of a vector
"""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import Batch, Build, Count, Environment, Positive
from hjepa.errors import Mistake, listed, nearest
from hjepa.randomness import Key
from hjepa_control.roaming import anything

TRIED = 32
"""How many walks are tried for a goal as far away as asked."""


class RandomGoals:
    """Another environment, whose own goals do not count.

    Options:
        of: that environment.
        near: how close to the goal it is reached, in the units of `by`.
        by: by which vector (B,1,P) of what is seen that is told.
        steps: how long the walks are; at each step the same is done as before, or, once in four times, something else.

    A task is one of `of`, whose walk follows from its numbers.
    """

    def __init__(self, seed: int, *, of: Build[Environment], near: Positive, by: str = "position", steps: Count = 25) -> None:
        self.world, self.seed, self.near, self.by, self.steps = of(seed), seed, near, by, steps
        self.actions = self.world.actions

    @property
    def columns(self) -> tuple[str, ...]:
        """What the numbers of a task are."""
        return self.world.columns

    def tasks(self, key: Key, nearest: float = 0.0, furthest: float = torch.inf) -> Tensor:
        """A task (B, K) for each word of the key, whose goal is that far from where it begins, and not reached there.

        Mistake where no walk that is tried leads to such a goal.
        """
        tasks = self.world.tasks(key)
        open_ = torch.arange(len(tasks))
        for attempt in range(1, TRIED + 1):
            start = self.reset(tasks[open_])
            away = self._away(start)
            open_ = open_[((away < max(nearest, self.near)) | (away > furthest)).cpu()]
            if not len(open_):
                return tasks
            tasks[open_] = self.world.tasks(Key(key.word[open_]).fold(attempt))
        raise Mistake(f"of {TRIED} walks of {self.steps} steps none ends {max(nearest, self.near):g} to {furthest:g} away")

    def reset(self, task: Tensor) -> Batch:
        """What is seen where tasks (B, K) begin; their goals are walked to before."""
        key = Key.of(self.seed, "random goals", device=task.device).fold_rows(task)
        self.world.reset(task)
        for action in anything(key, self.actions, self.steps).unbind(dim=1):
            self._goal, _ = self.world.step(action)
        return self.world.reset(task)

    def step(self, action: Tensor) -> tuple[Batch, Tensor]:
        """After an action (B, A) of each: what is seen, and which goals (B,) are reached."""
        seen, _ = self.world.step(action)
        return seen, self._away(seen) < self.near

    def goal(self) -> Batch:
        """What was seen at the goals."""
        return self._goal

    def _away(self, seen: Batch) -> Tensor:
        """(B,): how far the goals are from there."""
        if self.by not in seen:
            raise Mistake(f"by: {self.by!r} is not seen{nearest(self.by, seen)} (there are: {listed(sorted(seen))})")
        return (seen[self.by] - self._goal[self.by]).flatten(1).norm(dim=1)
