"""Two rooms, and a door between them."""

from __future__ import annotations

from torch import Tensor

from hjepa.contracts import NonNegative
from hjepa.randomness import Key
from hjepa_control.rooms import DOORS, Rooms, allowed, between
from hjepa_control.walls import Wall

WALLS = 15, 49
"""From where to where the wall may stand, so that on both sides there is room for walks towards its door."""


class TwoRooms(Rooms):
    """An upright wall, and somewhere in it a door: the world of PLDM and EB-JEPA, by their numbers.

    wall: the range of where the wall stands, in pixels from the left; door: that of the middle of its door, from the top. Of one number
    twice nothing is left to chance: EB-JEPA's fixed layout is `wall: [32, 32], door: [18, 18]`, PLDM's has its door at 10.
    rebound: standard deviation of how far a wall throws back whoever runs into it, in pixels; 0 makes the world deterministic.
    """

    numbers = ("wall", "door")

    def __init__(
        self,
        seed: int,
        *,
        wall: tuple[int, int] = (20, 44),
        door: tuple[int, int] = (10, 54),
        rebound: NonNegative = 0.5,
    ) -> None:
        super().__init__(seed, rebound)
        self.ranges = allowed("wall", wall, *WALLS), allowed("door", door, *DOORS)

    def drawn(self, key: Key) -> Tensor:
        return between(key, self.numbers, self.ranges)

    def walls(self, numbers: Tensor) -> list[Wall]:
        wall, door = numbers.unbind(dim=1)
        return [Wall.of(wall, door[:, None], upright=True)]
