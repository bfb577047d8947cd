"""Walks through rooms, made as they are asked for: what a world model learns from that shall plan there.

B samples    T frames    L numbers of a layout
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hjepa.contracts import Batch, Build, Count, Environment, Fraction, NonNegative, Positive, Spec
from hjepa.nn.splits import Drawn
from hjepa.randomness import Key, uniform
from hjepa_control.distractors import walked
from hjepa_control.rooms import FASTEST, OPENING, SIZE, Rooms, World
from hjepa_control.walls import cut
from hjepa_control.wander import steps

AWAY = 3.0, 10.0
"""How far from the middle of a wall a walk begins that shall lead through its door, in pixels; one that shall meet it, at most."""

SLIGHT = 1e-3
"""Pixels that rounding may add to a step."""


class Trajectories(Drawn):
    """Walks of a dot in a world of rooms, each in a layout of its own.

    Options:
        of: the world, `two_rooms` or another of rooms.
        frames: T, frames of a walk.
        crossing: the share of walks that begin before an open door, and head for it.
        contact: the share of the others that begin near an inner wall, and head for it: a model that has seldom seen what a
            wall does lets planners through.
        pace: each walk's steps are so many times as long, evenly from one number to the other, though none is longer than the world
            allows: who plans with fast steps must have seen some, and some in a row.
        concentration: of the von Mises distribution of turns: the larger, the straighter a walk.
        samples: how many walks an epoch of `train` has.
        held_out: how many `valid` has, and `test`.

    A batch holds
        frames (B,T,2,65,65): the dot, and the walls; in [0,1].
        actions (B,T-1,2): (x, y) in pixels, what was done; a wall may have been in the way.
        position (B,T,2): (x, y) of the dot, in pixels.
        stopped (B,T,1) bool: whether a wall was in the way of the step that led here.
        distractors (B,T,2N): (x, y) of each of N distractors, where the world has some.
        layout (B,L): the numbers of the layout.

    A walk is a pure function of the seed, the split and its id.
    """

    def __init__(
        self,
        seed: int,
        *,
        of: Build[Environment],
        frames: Annotated[int, Ge(2), Le(1024)] = 17,
        crossing: Fraction = 0.35,
        contact: Fraction = 0.0,
        pace: tuple[Positive, Positive] = (1.0, 1.0),
        concentration: NonNegative = 5.0,
        samples: Count = 1_000_000,
        held_out: Count = 1000,
    ) -> None:
        world = of(seed)
        if not isinstance(world, Rooms):
            raise ValueError(
                f"trajectories walk through rooms, and {of.name} has none; two_rooms, serial_rooms and four_rooms do"
            )
        self.rooms, self.seed, self.frames = world, seed, frames
        if pace[0] > pace[1]:
            raise ValueError(f"pace is [{pace[0]:g}, {pace[1]:g}]; write the smaller number first")
        self.crossing, self.contact, self.concentration, self.pace = crossing, contact, concentration, pace
        super().__init__(samples, held_out)
        self.streams = {"frames": Spec(maps=((2, SIZE, SIZE),), ticks=tuple(range(frames)), actions=2)}

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        key = Key.of(self.seed, "trajectories", self.name, device=device).fold(ids)
        layout = self.rooms.drawn(key)
        world = self.rooms.world(layout)
        position, actions = self.walked(world, key)
        others = walked(key, self.rooms.distractors, self.frames)
        told = {"actions": actions, "layout": layout, "stopped": stopped(position, actions)}
        return self.rooms.seen(world, position, others) | told

    def walked(self, world: World, key: Key) -> tuple[Tensor, Tensor]:
        """Positions (B,T,2), and the actions (B,T-1,2) between them."""
        place, heading = self._begin(world, key)
        slow, fast = self.pace
        pace = slow + (fast - slow) * uniform(key, "pace", (1, 1))
        actions = cut(pace * steps(key, heading, self.frames - 1, self.concentration), FASTEST)
        places = [place]
        for number, action in enumerate(actions.unbind(dim=1)):
            places.append(self.rooms.moved(world, places[-1], action, key.fold(number)))
        return torch.stack(places, dim=1), actions

    def _begin(self, world: World, key: Key) -> tuple[Tensor, Tensor]:
        """Where a walk begins (B,2), and its first heading (B,)."""
        place, heading = self.rooms.free(world, key, "start"), 2 * torch.pi * uniform(key, "heading")
        for name, share, begun in (("contact", self.contact, self._against), ("crossing", self.crossing, self._before)):
            if share:
                chosen, (there, towards) = uniform(key, name) < share, begun(world, key)
                place, heading = torch.where(chosen[:, None], there, place), torch.where(chosen, towards, heading)
        return place, heading

    def _before(self, world: World, key: Key) -> tuple[Tensor, Tensor]:
        """Before an open door, towards it."""
        doors, through, open_ = self.rooms.doors(world)
        which = (uniform(key, "door", (doors.shape[1],)) * open_).argmax(dim=1)
        rows = torch.arange(len(which), device=which.device)
        side = 2.0 * (uniform(key, "side") < 0.5) - 1
        away = AWAY[0] + (AWAY[1] - AWAY[0]) * uniform(key, "away")
        along = (OPENING / 2 - 1) * (2 * uniform(key, "along") - 1)
        straight = through[rows, which]
        place = doors[rows, which] - (side * away)[:, None] * straight + along[:, None] * straight.flip(-1)
        return place, torch.atan2(side * straight[:, 1], side * straight[:, 0])

    def _against(self, world: World, key: Key) -> tuple[Tensor, Tensor]:
        """Near an inner wall, towards where it is nearest."""
        places, free, wall = self.rooms.near_walls(world, key, "against")
        away = (wall - places).norm(dim=-1)
        which = (2 * free.int() + (away < AWAY[1]).int()).argmax(dim=1)[:, None, None].expand(-1, 1, 2)
        place, ahead = (points.gather(1, which)[:, 0] for points in (places, wall - places))
        return place, torch.atan2(ahead[:, 1], ahead[:, 0])


def stopped(position: Tensor, actions: Tensor) -> Tensor:
    """(B,T,1) bool, of positions (B,T,2) and the actions (B,T-1,2) between them: where the last step went otherwise than was meant.

    The last axis is one of numbers of a step, as everything of each step has it: without it a recording would take this for a fact of
    the whole walk.
    """
    otherwise = (position.diff(dim=1) - actions).abs().amax(-1, keepdim=True) > SLIGHT
    return torch.nn.functional.pad(otherwise, (0, 0, 1, 0))
