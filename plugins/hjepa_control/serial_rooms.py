"""Rooms in a row, with a door from each to the next: the further away a goal is, the more doors lie before it."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hjepa.contracts import NonNegative
from hjepa.randomness import Key
from hjepa_control.rooms import DOORS, SIZE, Rooms, allowed, between
from hjepa_control.walls import BORDER, Wall


class SerialRooms(Rooms):
    """Upright walls at equal distances, each with a door somewhere.

    rooms: how many; door: the range of the middle of each door, in pixels from the top; rebound: standard deviation of how far a wall
    throws back whoever runs into it, in pixels.
    """

    def __init__(
        self,
        seed: int,
        *,
        rooms: Annotated[int, Ge(2), Le(4)] = 3,
        door: tuple[int, int] = (10, 54),
        rebound: NonNegative = 0.5,
    ) -> None:
        super().__init__(seed, rebound)
        self.numbers = tuple(f"door_{number}" for number in range(1, rooms))
        self.ranges = (allowed("door", door, *DOORS),) * (rooms - 1)
        inside = SIZE - 2 * BORDER
        self.places = [BORDER - 0.5 + inside * number / rooms for number in range(1, rooms)]

    def drawn(self, key: Key) -> Tensor:
        return between(key, self.numbers, self.ranges)

    def walls(self, numbers: Tensor) -> list[Wall]:
        return [
            Wall.of(torch.full_like(door, place), door[:, None], upright=True)
            for place, door in zip(self.places, numbers.unbind(dim=1), strict=True)
        ]
