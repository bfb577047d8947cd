"""A dot among walls, seen from above: the world that latent planners are measured on, as many copies of it at a time as wanted.

Two Rooms of PLDM (Sobal et al. 2025, arXiv:2502.14819) and EB-JEPA (arXiv:2602.03604): a dot moves by what is done, exactly, but
where it meets a wall, which throws it back a little, at random. All of it is a function of tensors: the same dynamics make
training data, are planned with as if they had been learned, and are acted in.

    B worlds    T steps    L numbers of a layout    S side of the picture
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Batch, CostTerm
from hjepa.errors import Mistake
from hjepa.randomness import Key, integers, normal, uniform
from hjepa_control.distractors import Distractors
from hjepa_control.truth import Truth
from hjepa_control.walls import BORDER, BORDERS, Wall, covered, cut, layout, moved

DIM = 0.5
"""How bright a distractor is. In one picture it looks like the dot otherwise, and one picture must tell which of them obeys."""

TRIED = 32
"""Places that are drawn for one that is free. More than half of them are, of any layout."""

SIZE = 65
"""S."""

DOT = 1.3
"""Standard deviation of the dot's brightness in pixels."""

REACH = 5
"""Pixels to each side of the one that a dot is nearest to. Those beyond are 5.5 away at least, where its brightness rounds to 0."""

THICK, OPENING = 3.0, 9.0
"""How thick inner walls are, and how wide their doors, in pixels."""

DOORS = 9, 55
"""From where to where the middle of a door may lie, so that all of it is within the border."""

FASTEST = 2.45
"""The longest step in pixels, to which longer ones are cut."""

NEAR = 4.5
"""How close to the goal it is reached, in pixels."""

MARGIN = 2
"""How many standard deviations of its brightness a dot stays away from walls where it begins and where it shall go."""


@dataclass(frozen=True)
class World:
    """What follows from layouts."""

    walls: Sequence[Wall]
    boxes: Tensor
    """(B, M, 4)."""

    @cached_property
    def picture(self) -> Tensor:
        """(B, S, S) uint8: 255 where a pixel is wall; what lies outside of the border is empty, as in the original."""
        at = torch.arange(SIZE, dtype=self.boxes.dtype, device=self.boxes.device)
        low, high = self.boxes[..., None].chunk(2, dim=2)
        across, down = ((at > low) & (at < high)).to(at.dtype).unbind(dim=2)
        solid = down.mT @ across > 0  # some box holds both: a product of matrices is the fastest way to ask
        edge, end = BORDER - 1, SIZE - BORDER
        solid[:, :edge], solid[:, end + 1 :], solid[:, :, :edge], solid[:, :, end + 1 :] = False, False, False, False
        return solid.to(torch.uint8) * 255


class Rooms:
    """What all worlds of rooms have in common. A layout is a row of numbers, named by `numbers`; which walls they stand for, and how
    they are drawn, each such world says for itself. A task is a row of numbers too: start, goal, layout.

    rebound: standard deviation of how far a wall throws back, in pixels. distractors: how many dots wander about that obey nobody.
    """

    numbers: tuple[str, ...] = ()

    def __init__(self, seed: int, rebound: float, distractors: int = 0) -> None:
        self.seed, self.rebound, self.distractors = seed, rebound, distractors
        most = torch.full((2,), FASTEST / 2**0.5)  # so that no action is too long, and what is planned is what is done
        self.actions = ActionSpace(-most, most)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the numbers of a task are."""
        return ("start_x", "start_y", "goal_x", "goal_y", *self.numbers)

    # --- what a world of rooms says for itself ---

    def drawn(self, key: Key) -> Tensor:
        """A layout (B, L) for each word of the key."""
        raise NotImplementedError

    def walls(self, numbers: Tensor) -> Sequence[Wall]:
        """Of layouts (B, L)."""
        raise NotImplementedError

    # --- an environment ---

    def tasks(self, key: Key, nearest: float = 0.0, furthest: float = torch.inf) -> Tensor:
        """A task (B, K) for each word of the key: start and goal in different rooms, that far from each other in pixels.

        Mistake where in some layout no such two places are found.
        """
        numbers = self.drawn(key)
        world = self.world(numbers)
        (start, first), (goal, second) = self._tried(world, key, "start"), self._tried(world, key, "goal")
        turned = (torch.arange(TRIED)[:, None] + torch.arange(TRIED)).flatten() % TRIED  # each start with each goal
        start, first = start.repeat(1, TRIED, 1), first.repeat(1, TRIED)
        goal, second = goal[:, turned], second[:, turned]
        away = (start - goal).norm(dim=-1)
        good = first & second & (self.room(world, start) != self.room(world, goal)) & (away >= nearest) & (away <= furthest)
        if not good.any(dim=1).all():
            raise Mistake(
                f"no two places in different rooms are {nearest:g} to {furthest:g} pixels apart, of {TRIED**2} that were tried"
            )
        which = good.int().argmax(dim=1)[:, None, None].expand(-1, 1, 2)
        return torch.cat((start.gather(1, which)[:, 0], goal.gather(1, which)[:, 0], numbers), dim=1)

    def reset(self, task: Tensor) -> Batch:
        """What is seen where tasks (B, K) begin. What walls and distractors do follows from a task's numbers, whatever stands beside it."""
        self._task, self._place, self._goal, self._world = task, task[:, :2], task[:, 2:4], self.world(task[:, 4:])
        self._steps = torch.zeros(len(task), dtype=torch.int64, device=task.device)
        self._key = Key.of(self.seed, "rebound", device=task.device).fold_rows(task)
        self._others = Distractors.begun(self._key, self.distractors)
        return self._seen(self._place, self._others)

    def step(self, action: Tensor) -> tuple[Batch, Tensor]:
        """After an action (B, 2) of each: what is seen, and which goals (B,) are reached."""
        key = self._key.fold(self._steps)
        self._place, self._others = self.moved(self._world, self._place, action, key), self._others.moved(key)
        self._steps += 1
        return self._seen(self._place, self._others), (self._place - self._goal).norm(dim=1) < NEAR

    def restart(self, which: Tensor, task: Tensor) -> Batch:
        """Those of `which` (B,) bool begin a task anew, their rows of (B, K); the others stand where they stood. What is seen by all."""
        place, steps, others = self._place, self._steps, self._others
        self.reset(torch.where(which[:, None], task, self._task))
        self._place = torch.where(which[:, None], self._place, place)
        self._steps, self._others = torch.where(which, self._steps, steps), self._others.where(which, others)
        return self._seen(self._place, self._others)

    def goal(self) -> Batch:
        """What would be seen at the goals, at another time: distractors are somewhere else then."""
        return self._seen(self._goal, Distractors.begun(self._key.fold("goal"), self.distractors))

    def truth(self, horizon: int, costs: Sequence[tuple[CostTerm, float]], stride: int = 1, above: Any = None) -> Truth:
        """The tasks as they stand now, with the world itself as the model: what a planner could do at best."""
        return Truth(self._world.boxes, self._place, self._goal, FASTEST, horizon, costs, stride, above)

    def straight(self) -> Tensor:
        """(B, 2): the longest step towards the goal, or what is left of the way."""
        return cut(self._goal - self._place, FASTEST)

    def reaches(self, actions: Tensor) -> Tensor:
        """Candidates (B, S, K, 2) -> (B,) bool: whether any would reach the goal from here, if walls threw nothing back."""
        places = self.truth(actions.shape[2], ()).rollout(actions).tokens[:, :, 0]
        away = (places.view(*actions.shape[:3], 2) - self._goal[:, None, None]).norm(dim=-1)
        return (away < NEAR).flatten(1).any(1)

    def foreseen(self, actions: Tensor, steps: Sequence[int]) -> Batch:
        """What would be seen after those steps of candidates (B, S, K, 2), the first of which is 1, if walls threw nothing back and
        distractors stayed where they are: (B*S, steps, ...) each.
        """
        tasks, count = actions.shape[:2]
        after = [step - 1 for step in steps]
        places = self.truth(actions.shape[2], ()).rollout(actions).tokens[:, after, 0]
        # as if the candidates of a world were steps of it, so that its walls are drawn once
        others = self._others.places[:, None].expand(-1, count * len(after), -1, -1)
        seen = self.seen(self._world, places.reshape(tasks, -1, 2), others)
        return {name: value.reshape(tasks * count, len(after), *value.shape[2:]) for name, value in seen.items()}

    def _seen(self, place: Tensor, others: Distractors) -> Batch:
        """One step: the picture, and where the dots are."""
        return self.seen(self._world, place[:, None], others.places[:, None])

    # --- the dynamics ---

    def room(self, world: World, places: Tensor) -> Tensor:
        """(B, ..., 2) -> (B, ...) int64: which room a place lies in, a number whose bits are the sides of the walls."""
        return sum(
            (wall.side(places) << bit for bit, wall in enumerate(world.walls)),
            torch.zeros_like(places[..., 0], dtype=torch.int64),
        )

    def world(self, numbers: Tensor) -> World:
        """Of layouts (B, L)."""
        walls = self.walls(numbers)
        return World(walls, layout(walls, SIZE, THICK, OPENING))

    def moved(self, world: World, place: Tensor, action: Tensor, key: Key) -> Tensor:
        """Where a dot is after an action: (B, 2) each; the key has a word for each."""
        return moved(world.boxes, place, cut(action, FASTEST), self.rebound * normal(key, "rebound").abs())

    def free(self, world: World, key: Key, stream: str) -> Tensor:
        """A place (B, 2) in each world, evenly from those that are far enough from its walls."""
        places, free = self._tried(world, key, stream)
        return places[torch.arange(len(places), device=places.device), free.int().argmax(dim=1)]

    def near_walls(self, world: World, key: Key, stream: str) -> tuple[Tensor, Tensor, Tensor]:
        """Places (B, TRIED, 2), which of them are free, and the place (B, TRIED, 2) of an inner wall that is nearest to each."""
        places, free = self._tried(world, key, stream)
        boxes = world.boxes[:, None, BORDERS:]
        there = (boxes[..., 2:] >= boxes[..., :2]).all(-1)  # a box that is not there ends before it begins
        nearest = torch.minimum(torch.maximum(places[:, :, None], boxes[..., :2]), boxes[..., 2:])
        away = (nearest - places[:, :, None]).norm(dim=-1).masked_fill(~there, torch.inf)
        which = away.argmin(dim=2)[:, :, None, None].expand(-1, -1, 1, 2)
        return places, free, nearest.gather(2, which)[:, :, 0]

    def _tried(self, world: World, key: Key, stream: str) -> tuple[Tensor, Tensor]:
        """Places (B, TRIED, 2) within the border, and which of them (B, TRIED) are far enough from walls."""
        margin, inside = MARGIN * DOT, SIZE - 2 * BORDER
        places = BORDER - 0.5 + margin + (inside - 2 * margin) * uniform(key, stream, (TRIED, 2))
        grown = world.boxes + margin * world.boxes.new_tensor([-1, -1, 1, 1])
        return places, ~covered(grown, places)

    def doors(self, world: World) -> tuple[Tensor, Tensor, Tensor]:
        """The middle of every door (B, D, 2), which way it leads (B, D, 2), of length 1, and whether it is open (B, D)."""
        middles, ways = [], []
        for wall in world.walls:
            at = wall.at[:, None].expand_as(wall.doors)
            middles.append(torch.stack((at, wall.doors) if wall.upright else (wall.doors, at), dim=-1))
            ways.append(at.new_tensor([1.0, 0.0] if wall.upright else [0.0, 1.0]).expand_as(middles[-1]))
        return torch.cat(middles, 1), torch.cat(ways, 1), ~torch.cat([wall.closed for wall in world.walls], 1)

    # --- what is seen ---

    def seen(self, world: World, places: Tensor, others: Tensor) -> Batch:
        """The dot at places (B, T, 2), distractors at `others` (B, T, N, 2): pictures, and where the dots are."""
        said = {"distractors": others.flatten(2)} if self.distractors else {}
        return {"frames": pictured(self.shown(world, places, others)), "position": places} | said

    def shown(self, world: World, places: Tensor, others: Tensor) -> Tensor:
        """Pictures (B, T, 2, S, S) uint8: all dots, and the walls. Where dots lie on one another, the brightest is seen."""
        pictures = torch.zeros(*places.shape[:2], 2, SIZE, SIZE, dtype=torch.uint8, device=places.device)
        pictures[:, :, 1] = world.picture[:, None]
        flat = pictures.view(-1, 2 * SIZE * SIZE)
        for dots, full in ((places, 1.0), *((dots, DIM) for dots in others.unbind(dim=2))):
            pixels, bright = _dots(dots.flatten(0, 1), full)
            flat.scatter_(1, pixels, torch.maximum(bright, flat.gather(1, pixels)))
        return pictures


def pictured(shown: Tensor) -> Tensor:
    """Bytes -> float32 in [0, 1]."""
    return shown.float().mul_(1 / 255)


def allowed(name: str, ends: tuple[int, int], low: int, high: int) -> tuple[int, int]:
    """Both ends of a range, which must lie from low to high in rising order; ValueError where they do not."""
    if not low <= ends[0] <= ends[1] <= high:
        raise ValueError(f"{name} is [{ends[0]}, {ends[1]}]; both must be from {low} to {high}, the smaller one first")
    return ends


def between(key: Key, names: Sequence[str], ranges: Sequence[tuple[int, int]]) -> Tensor:
    """(B, L): a whole number for each name, within its range, both ends of which belong to it."""
    drawn = [integers(key, name, low, high + 1) for name, (low, high) in zip(names, ranges, strict=True)]
    return torch.stack(drawn, dim=1).float()


def _dots(places: Tensor, full: float) -> tuple[Tensor, Tensor]:
    """Of places (R, 2): which pixels (R, N) of a picture a dot makes bright, and how bright: all where it is not black."""
    around = torch.arange(-REACH, REACH + 1, device=places.device)
    nearest = places.round().clamp(REACH, SIZE - 1 - REACH)  # who touches the border is half a pixel from two of them
    bright = [torch.exp(-((around - off[:, None]) ** 2) / (2 * DOT**2)) for off in (places - nearest).unbind(1)]
    column, row = (at.long()[:, None] + around for at in nearest.unbind(1))
    pixels = row[:, :, None] * SIZE + column[:, None, :]
    return pixels.flatten(1), (255 * full * bright[1][:, :, None] * bright[0][:, None, :]).round().to(torch.uint8).flatten(1)
