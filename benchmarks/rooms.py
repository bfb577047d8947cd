"""How many walks and steps a second do the worlds of rooms give, beside one world at a time?

Walks of 17 frames of 65 x 65 in `two_rooms`, 64 at a time, as floats (a batch of `trajectories`) and as bytes; and steps of many such
worlds at once, each with its picture. The plain ones are written below in Python and NumPy: one world after the other, step by step,
every wall asked whether it is met, the dot drawn by its formula over the whole picture, walls once a layout. They are given the
layouts, starts, actions and rebounds of ours, which ours draw anew; places and pictures must agree, or there is no result.
The process keeps what it frees, as a training on a CPU does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Bench, Case, run
from hjepa.making import keep_freed_memory
from hjepa.randomness import Key, normal
from hjepa_control.distractors import walked
from hjepa_control.rooms import DOT, FASTEST, OPENING, SIZE, THICK, Rooms, World, pictured
from hjepa_control.trajectories import Trajectories
from hjepa_control.two_rooms import TwoRooms
from hjepa_control.walls import BORDER, FAR, GAP, STEP

Box = tuple[float, float, float, float]
"""Its lowest x and y, its highest x and y."""
Place = tuple[float, float]
Picture = np.ndarray[Any, np.dtype[np.uint8]]
X, Y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))


class PlainRoom:
    """One world with a dot in it."""

    def __init__(self, layout: Sequence[float], place: Sequence[float]) -> None:
        (wall, door), low, high = layout, BORDER - 0.5, SIZE - BORDER - 0.5
        left, right, above, below = wall - THICK / 2, wall + THICK / 2, door - OPENING / 2, door + OPENING / 2
        border = [(-FAR, -FAR, low, FAR), (high, -FAR, FAR, FAR), (-FAR, -FAR, FAR, low), (-FAR, high, FAR, FAR)]
        self.boxes: list[Box] = [*border, (left, -FAR, right, above), (left, below, right, FAR)]
        self.place: Place = (place[0], place[1])
        self.walls = self._walls()

    def _walls(self) -> Picture:
        solid = np.zeros((SIZE, SIZE), dtype=bool)
        for left, top, right, bottom in self.boxes:
            solid |= (left < X) & (right > X) & (top < Y) & (bottom > Y)
        outside = (np.minimum(X, Y) < BORDER - 1) | (np.maximum(X, Y) > SIZE - BORDER)
        return np.where(outside, 0, 255 * solid).astype(np.uint8)

    def step(self, action: Sequence[float], rebound: float) -> None:
        """Walls throw back straight, half as far at most as there is room."""
        shorter = min(1.0, FASTEST / max(math.hypot(*action), 1e-12))
        move = (shorter * action[0], shorter * action[1])
        free, axis = self._met(self.place, move)
        end = [at + free * along for at, along in zip(self.place, move, strict=True)]
        if free < 1:
            away, back = -math.copysign(1.0, move[axis]), max(rebound, GAP)
            end[axis] += STEP * away
            twice = (2 * back * away, 0.0) if axis == 0 else (0.0, 2 * back * away)
            end[axis] += min(back, self._met((end[0], end[1]), twice)[0] * back) * away
        self.place = (end[0], end[1])

    def _met(self, start: Place, move: Place) -> tuple[float, int]:
        """The share of a move that is free, and the axis across which a wall is met."""
        share, across = 1.0, 0
        for box in self.boxes:
            entered, left, axis = -math.inf, math.inf, 0
            for along in (0, 1):
                low, high = box[along] - start[along], box[along + 2] - start[along]
                if move[along] == 0:
                    first, last = (-math.inf, math.inf) if low < 0 < high else (math.inf, -math.inf)
                else:
                    first, last = sorted((low / move[along], high / move[along]))
                if first > entered:
                    entered, axis = first, along
                left = min(left, last)
            if entered < left and 0 <= entered < share:
                share, across = entered, axis
        return share, across

    def shown(self) -> Picture:
        """(2,S,S)."""
        bright = 255 * np.exp(-((X - self.place[0]) ** 2 + (Y - self.place[1]) ** 2) / (2 * DOT**2))
        return np.stack((bright.round().astype(np.uint8), self.walls))


Walk = tuple[Sequence[float], Sequence[float], Sequence[Sequence[float]], Sequence[float]]
"""Layout, start, and of each step the action and the rebound."""
Seen = tuple[Tensor, Tensor]
"""After a step: places (B,2), and pictures (B,2,S,S) as floats."""


def plain_walks(walks: Sequence[Walk]) -> Seen:
    """Places (B,T,2), and pictures (B,T,2,S,S) as bytes."""
    places, pictures = [], []
    for layout, start, actions, rebounds in walks:
        room = PlainRoom(layout, start)
        way, film = [room.place], [room.shown()]
        for action, rebound in zip(actions, rebounds, strict=True):
            room.step(action, rebound)
            way.append(room.place)
            film.append(room.shown())
        places.append(way)
        pictures.append(np.stack(film))
    return torch.tensor(places), torch.from_numpy(np.stack(pictures))


def plain_steps(rooms: Sequence[PlainRoom], actions: Sequence[Any], rebounds: Sequence[Any]) -> Iterator[Seen]:
    for action, rebound in zip(actions, rebounds, strict=True):
        for room, own_action, own_rebound in zip(rooms, action, rebound, strict=True):
            room.step(own_action, own_rebound)
        pictures = torch.from_numpy(np.stack([room.shown() for room in rooms]))
        yield torch.tensor([room.place for room in rooms]), pictured(pictures)


def own_steps(rooms: Rooms, actions: Tensor) -> Iterator[Seen]:
    for action in actions:
        seen, _ = rooms.step(action)
        yield seen["position"][:, 0], seen["frames"][:, 0]


@contextmanager
def overheard(rooms: Rooms) -> Iterator[list[Tensor]]:
    """How far walls throw back (B,), step by step, as long as this is open."""
    told: list[Tensor] = []

    def moved(world: World, place: Tensor, action: Tensor, key: Key) -> Tensor:
        told.append(rooms.rebound * normal(key, "rebound").abs())
        return Rooms.moved(rooms, world, place, action, key)

    with patch.object(rooms, "moved", moved):
        yield told


def agree(what: str, own: Seen, plain: Seen) -> tuple[float, float]:
    """The greatest differences of ours and the plain ones, in pixels and of 255."""
    apart, shades = (float((one.cpu() - other).abs().max()) for one, other in zip(own, plain, strict=True))
    shades *= 255
    assert apart < 1e-3, f"{what}: the dots of both are {apart} pixels apart"
    assert shades < 1.5, f"{what}: the pictures of both differ by {shades} of 255"
    return apart, shades


def as_bytes(walks: Trajectories, ids: Tensor, device: torch.device) -> Tensor:
    """The pictures (B,T,2,S,S) of a batch, before they are floats."""
    key = Key.of(walks.seed, "trajectories", walks.name, device=device).fold(ids)
    world = walks.rooms.world(walks.rooms.drawn(key))
    places, _ = walks.walked(world, key)
    return walks.rooms.shown(world, places, walked(key, walks.rooms.distractors, walks.frames))


def measure_walks(bench: Bench, size: int) -> None:
    walks, ids = Trajectories(0, of=TwoRooms), torch.arange(size)
    with overheard(walks.rooms) as rebounds:
        batch = walks.batch(ids, bench.device)
    given = [batch["layout"], batch["position"][:, 0], batch["actions"], torch.stack(rebounds, dim=1)]
    plain = list(zip(*(each.tolist() for each in given), strict=True))
    places, pictures = plain_walks(plain)
    own = as_bytes(walks, ids, bench.device)
    assert torch.equal(pictured(own), batch["frames"])
    apart, shades = agree("walks", (batch["position"], batch["frames"]), (places, pictured(pictures)))
    cases: dict[str, Case] = {
        "floats": partial(walks.batch, ids, bench.device),
        "bytes": partial(as_bytes, walks, ids, bench.device),
        "plain floats": lambda: pictured(plain_walks(plain)[1]).to(bench.device),
        "plain bytes": lambda: plain_walks(plain)[1].to(bench.device),
    }
    rows = bench.rounds(cases)
    for kind in ("floats", "bytes"):
        own_rates, plain_rates = ([size / row[name] for row in rows] for name in (kind, f"plain {kind}"))
        bench.figure(f"trajectories, {size} at a time, as {kind}", "walks/s", own_rates, plain_rates, rate=True)
    bench.figure("trajectories, greatest difference of places", "pixels", [apart])
    bench.figure("trajectories, greatest difference of pictures", "of 255", [shades])


def done(steps: Iterator[Seen]) -> None:
    for _ in steps:
        pass


def measure_steps(bench: Bench, size: int, count: int) -> None:
    """Both go on from where they stand whenever they are called."""
    rooms = TwoRooms(0)
    tasks = rooms.tasks(Key.of(0, "benchmark", device=bench.device).fold(torch.arange(size)))
    actions = 3 * torch.randn(count, size, 2, generator=torch.Generator().manual_seed(0)).to(bench.device)
    rooms.reset(tasks)
    with overheard(rooms) as rebounds:
        own = list(own_steps(rooms, actions))
    given = actions.tolist(), torch.stack(rebounds).tolist()
    alone = [PlainRoom(task[4:], task[:2]) for task in tasks.tolist()]
    name = f"steps of {size} worlds at once"
    differences = [agree(name, one, other) for one, other in zip(own, plain_steps(alone, *given), strict=True)]
    del own  # what is held here would be in the way of what is measured
    cases: dict[str, Case] = {
        "own": lambda: done(own_steps(rooms, actions)),
        "plain": lambda: done(plain_steps(alone, *given)),
    }
    rows = bench.rounds(cases, 5)
    own_rates, plain_rates = ([count * size / row[side] for row in rows] for side in ("own", "plain"))
    bench.figure(name, "steps/s", own_rates, plain_rates, rate=True)
    bench.figure(f"{name}, greatest difference of places", "pixels", [max(apart for apart, _ in differences)])
    bench.figure(f"{name}, greatest difference of pictures", "of 255", [max(shades for _, shades in differences)])


def measure(bench: Bench) -> None:
    keep_freed_memory()
    measure_walks(bench, 4 if bench.quick else 64)
    for size in (8,) if bench.quick else (64, 512):
        measure_steps(bench, size, 4 if bench.quick else 16)


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
