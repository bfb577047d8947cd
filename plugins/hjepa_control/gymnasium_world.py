"""Any environment of Gymnasium as a world to act in: what it renders is what is seen.

Such worlds are other people's code: B of them are made, and stepped one after the other. A task is a seed, from which all else
follows: where it begins, and, of one that has goals (`desired_goal`, as the robots of Plappert et al. 2018, arXiv:1802.09464, and
PointMaze), where it shall go.

    B worlds    T = 1 step    A action width    O, G widths of vectors    S side of the picture
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hjepa.contracts import ActionSpace, Batch, Count, Whole
from hjepa.errors import Mistake, listed
from hjepa.randomness import Key, integers

SEEDS = 2**24
"""How many seeds there are: those that a float32 holds exactly."""

TRIED = 32
"""Seeds that are tried for a task whose goal is as far away as asked."""

STATE, ACHIEVED, DESIRED = "observation", "achieved_goal", "desired_goal"
"""What worlds with goals call what is observed."""

SUCCESS = "is_success", "success"
"""What they call having got there."""


class GymnasiumWorld:
    """An environment by its id.

    Options:
        id: its name in Gymnasium; `MODULE:NAME` imports the module that registers it first.
        size: S. What it renders is made smaller, or larger, to that many pixels square.
        repeat: how often each action is done before anything is seen again.
        steps: after how many of its own steps an episode ends; 0 leaves that to the environment.
        options: what it is told besides, by name (`{width: 64, height: 64}` has MuJoCo render small).

    What is seen is `frames` (B,1,3,S,S) in [0,1]; `state` (B,1,O), its vector, where it observes one; `achieved` (B,1,G), where it has
    goals. A goal is known as `achieved` alone, since no picture of it can be had (`random_goals` has some). Reached is what it calls
    `success` or `is_success`; where it says neither, an episode that it terminated. Who is at the end of an episode stays as he is.
    """

    columns = ("seed",)
    """What the numbers of a task are."""

    def __init__(
        self,
        seed: int,
        *,
        id: str,
        size: Count = 64,
        repeat: Count = 1,
        steps: Whole = 0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        del seed  # all chance follows from tasks
        self.id, self.size, self.repeat = id, size, repeat
        self.told = {**(options or {}), "render_mode": "rgb_array", "disable_env_checker": True}
        self.told |= {"max_episode_steps": steps} if steps else {}
        self.copies: list[Any] = [self._made()]
        self.box = self.copies[0].action_space
        self.actions = _space(id, self.box)

    # --- an environment ---

    def tasks(self, key: Key, nearest: float = 0.0, furthest: float = torch.inf) -> Tensor:
        """A task (B, 1) for each word of the key: a seed; of worlds with goals one whose goal is that far from where it begins.

        Mistake where none of those that are tried is.
        """
        seeds = integers(key, "seed", 0, SEEDS, (TRIED,))
        if nearest <= 0 and math.isinf(furthest):
            return seeds[:, :1].float()
        return seeds.new_tensor([[self._fitting(row, nearest, furthest)] for row in seeds.tolist()]).float()

    def reset(self, task: Tensor) -> Batch:
        """What is seen where tasks (B, 1) begin."""
        self.copies += [self._made() for _ in range(len(task) - len(self.copies))]
        self.acting, self.device = self.copies[: len(task)], task.device
        self.said = [copy.reset(seed=int(row[0]))[0] for copy, row in zip(self.acting, task.tolist(), strict=True)]
        self.reached, self.over = [False] * len(task), [False] * len(task)
        return self._seen()

    def step(self, action: Tensor) -> tuple[Batch, Tensor]:
        """After an action (B, A) of each: what is seen, and which goals (B,) are reached."""
        for number, row in enumerate(action.cpu().numpy()):
            bounded = np.clip(row.reshape(self.box.shape).astype(self.box.dtype), self.box.low, self.box.high)
            for _ in range(self.repeat):
                if not self.over[number]:
                    self._act(number, bounded)
        return self._seen(), torch.tensor(self.reached, device=self.device)

    def goal(self) -> Batch:
        """What would be seen at the goals, as far as it is known. Mistake where the environment has none."""
        self._needs_goals(self.said[0])
        return {"achieved": _stacked([one[DESIRED] for one in self.said]).to(self.device)}

    # --- one copy ---

    def _made(self) -> Any:
        try:
            import gymnasium
        except ImportError:
            raise Mistake("gymnasium is not installed: pip install 'hjepa[sim]'") from None
        try:
            return gymnasium.make(self.id, **self.told)
        except Exception as error:  # whatever other people's code raises
            raise ValueError(f"id: {self.id!r} cannot be made: {type(error).__name__}: {str(error).strip()}") from error

    def _act(self, number: int, action: np.ndarray[Any, Any]) -> None:
        self.said[number], _, terminated, truncated, info = self.acting[number].step(action)
        told = [bool(info[word]) for word in SUCCESS if word in info]
        self.reached[number] = any(told) if told else bool(terminated)
        self.over[number] = bool(terminated or truncated)

    def _fitting(self, seeds: list[int], nearest: float, furthest: float) -> int:
        for seed in seeds:
            said = self.copies[0].reset(seed=seed)[0]
            self._needs_goals(said)
            away = float(np.linalg.norm(np.subtract(said[DESIRED], said[ACHIEVED])))
            if nearest <= away <= furthest:
                return seed
        raise Mistake(f"{self.id}: of {TRIED} seeds that were tried none has a goal {nearest:g} to {furthest:g} away")

    def _needs_goals(self, said: Any) -> None:
        if not isinstance(said, dict) or not {ACHIEVED, DESIRED} <= set(said):
            seen = listed(sorted(said)) if isinstance(said, dict) else "one array"
            raise Mistake(f"{self.id} has no goals: it observes {seen}, and {ACHIEVED} and {DESIRED} are needed")

    # --- what is seen ---

    def _seen(self) -> Batch:
        pictures = [np.array(copy.render()) for copy in self.acting]
        seen = {"frames": _square(torch.from_numpy(np.stack(pictures)), self.size)[:, None]}
        vectors = [one.get(STATE) if isinstance(one, dict) else one for one in self.said]
        if isinstance(vectors[0], np.ndarray) and vectors[0].dtype.kind == "f":
            seen["state"] = _stacked(vectors)
        if isinstance(self.said[0], dict) and ACHIEVED in self.said[0]:
            seen["achieved"] = _stacked([one[ACHIEVED] for one in self.said])
        return {name: value.to(self.device) for name, value in seen.items()}


def _space(id: str, space: Any) -> ActionSpace:
    """Every number of an action, and between what it may lie; ValueError where it is not made of such numbers."""
    name = type(space).__name__
    if name != "Box":
        raise ValueError(f"id: {id!r} is acted in by {space}; actions must be numbers between two bounds, that is a Box")
    if not space.is_bounded():
        raise ValueError(f"id: {id!r} has actions without bounds, {space}; wrap it in RescaleAction or give it bounds")
    low, high = (torch.tensor(end, dtype=torch.float32).flatten() for end in (space.low, space.high))
    return ActionSpace(low, high)


def _square(pictures: Tensor, size: int) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, S, S) float32 in [0, 1], each pixel the mean of what it stands for."""
    values = pictures.permute(0, 3, 1, 2).float().mul_(1 / 255)
    return values if values.shape[2:] == (size, size) else interpolate(values, (size, size), mode="area")


def _stacked(vectors: list[Any]) -> Tensor:
    """(B, 1, O) float32."""
    return torch.from_numpy(np.stack([np.asarray(one, np.float32).reshape(-1) for one in vectors]))[:, None]
