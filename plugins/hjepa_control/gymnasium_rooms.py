"""Worlds of rooms as environments of Gymnasium: one, or many at a time. What happens in them is decided by the batched world alone.

An observation has the picture, where the dot is, and where it shall go; the reward is 1 where it gets there, which ends the episode,
and 0 elsewhere. Environment i of many, seeded with s, does exactly what a single one does that is seeded with s + i.

    N environments    K numbers of a task    S side of the picture
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from hjepa.contracts import Batch
from hjepa.randomness import Key
from hjepa_control.named import Named
from hjepa_control.rooms import FASTEST, NEAR, SIZE, Rooms

Array = np.ndarray[Any, Any]

ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
"""A step, in units of the longest that there is: so Gymnasium wants it."""
SEEN: spaces.Space[Any] = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (SIZE, SIZE, 2), np.uint8),
        "position": spaces.Box(0, SIZE - 1, (2,), np.float32),
        "goal": spaces.Box(0, SIZE - 1, (2,), np.float32),
    }
)
ENLARGED = 4
"""Times as large as it is seen, a world is shown to people."""


class RoomsEnv(gymnasium.Env[dict[str, Array], Array]):
    """One copy of a world.

    world: `two_rooms`, `serial_rooms` or `four_rooms`; render_mode: `rgb_array` or None; all else are options of the world.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, world: str, render_mode: str | None = None, **options: Any) -> None:
        self.rooms, self.render_mode = _rooms(world, options), render_mode
        self.action_space, self.observation_space = ACTIONS, SEEN

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """`options["task"]`: the numbers of the task, in the order of `columns` of the world; without them a task is drawn."""
        super().reset(seed=seed)
        told = [options["task"]] if options and "task" in options else None
        self.task = _drawn(self.rooms, [self.np_random]) if told is None else _told(self.rooms, told, 1)
        self.seen = _observed(self.rooms.reset(self.task), self.task)
        return _of(self.seen, 0), {"task": self.task[0].numpy().copy()}

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        seen, reached = self.rooms.step(_pushed(action)[None])
        self.seen = _observed(seen, self.task)
        return _of(self.seen, 0), float(reached[0]), bool(reached[0]), False, {}

    def render(self) -> Array | None:  # type: ignore[override]
        return _drawing(_of(self.seen, 0)) if self.render_mode else None


class RoomsVectorEnv(VectorEnv[dict[str, Array], Array, Array]):
    """Many copies of a world, moved at once; each begins anew in the step after the one that ended its episode.

    num_envs: N; world: as of one copy; max_episode_steps: after how many steps an episode is cut off; render_mode: `rgb_array` or
    None; all else are options of the world.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self, num_envs: int, world: str, max_episode_steps: int, render_mode: str | None = None, **options: Any
    ) -> None:
        self.num_envs, self.render_mode, self.longest = num_envs, render_mode, max_episode_steps
        self.rooms = _rooms(world, options)
        self.single_action_space, self.single_observation_space = ACTIONS, SEEN
        self.action_space, self.observation_space = batch_space(ACTIONS, num_envs), batch_space(SEEN, num_envs)
        self.draws = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(  # type: ignore[override]
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """`seed`: of the first, each later one has one more; or one for each. `options["task"]`: (N, K)."""
        seeds = [seed + number for number in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        self.draws = [draw if one is None else seeding.np_random(one)[0] for draw, one in zip(self.draws, seeds, strict=True)]
        told = options["task"] if options and "task" in options else None
        self.task = _drawn(self.rooms, self.draws) if told is None else _told(self.rooms, told, self.num_envs)
        self.steps, self.ended = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, np.bool_)
        self.seen = _observed(self.rooms.reset(self.task), self.task)
        return self._copied(), {"task": self.task.numpy().copy(), "_task": ~self.ended}

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        begun, which = self.ended, torch.from_numpy(self.ended)
        seen, reached = self.rooms.step(_pushed(actions))
        if begun.any():
            fresh = _drawn(self.rooms, [draw for draw, ended in zip(self.draws, begun, strict=True) if ended])
            self.task = self.task.clone().index_put((which,), fresh)
            seen = self.rooms.restart(which, self.task)
        self.seen = _observed(seen, self.task)
        self.steps = np.where(begun, 0, self.steps + 1)
        terminated = reached.numpy() & ~begun
        truncated = self.steps >= self.longest
        self.ended = terminated | truncated
        info = {"task": self.task.numpy().copy(), "_task": begun} if begun.any() else {}
        return self._copied(), terminated.astype(np.float64), terminated, truncated, info

    def _copied(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self.seen.items()}

    def render(self) -> tuple[Array, ...] | None:
        if not self.render_mode:
            return None
        return tuple(_drawing(_of(self.seen, number)) for number in range(self.num_envs))


def _rooms(world: str, options: dict[str, Any]) -> Rooms:
    made = Named(world, options)(0)
    if not isinstance(made, Rooms):
        raise ValueError(f"{world} is no world of rooms; two_rooms, serial_rooms and four_rooms are")
    return made


def _drawn(rooms: Rooms, draws: Sequence[np.random.Generator]) -> Tensor:
    """A task (N, K) by each of N generators."""
    return rooms.tasks(Key(torch.tensor([int(draw.integers(2**62)) for draw in draws])))


def _told(rooms: Rooms, written: Any, count: int) -> Tensor:
    """Tasks (N, K) that somebody wrote down."""
    task = torch.from_numpy(np.array(written, np.float32))
    if task.shape != (count, len(rooms.columns)):
        wanted = f"the numbers {', '.join(rooms.columns)}" + (f" for each of {count}" if count > 1 else "")
        raise ValueError(f"a task has {wanted}; written: {written!r}")
    return task


def _pushed(action: Array) -> Tensor:
    return FASTEST * torch.from_numpy(np.array(action, np.float32))


def _observed(seen: Batch, task: Tensor) -> dict[str, Array]:
    """One step of N worlds."""
    image = seen["frames"][:, 0].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    position, goal = seen["position"][:, 0].numpy().copy(), task[:, 2:4].numpy().copy()
    return {"image": image.contiguous().numpy(), "position": position, "goal": goal}


def _of(seen: dict[str, Array], number: int) -> dict[str, Array]:
    return {name: value[number].copy() for name, value in seen.items()}


def _drawing(seen: dict[str, Array]) -> Array:
    """(4 S, 4 S, 3) uint8: dots in white, walls in grey, and a green ring: who is within it has reached the goal."""
    dots, walls = seen["image"][..., :1], seen["image"][..., 1:] // 2
    picture = np.maximum(dots, walls).repeat(3, -1)
    column, row = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    away = np.hypot(column - seen["goal"][0], row - seen["goal"][1])
    picture[np.abs(away - NEAR) < 0.7, 1] = 255
    return picture.repeat(ENLARGED, 0).repeat(ENLARGED, 1)
