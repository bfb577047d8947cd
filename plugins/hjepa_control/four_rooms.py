"""Two by two rooms with a door between each two neighbours, one of which may be closed."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import Fraction, NonNegative, Whole
from hjepa.randomness import Key, integers, uniform
from hjepa_control.rooms import SIZE, Rooms, between
from hjepa_control.walls import Wall

MIDDLE = (SIZE - 1) / 2
FIRST, SECOND = (10, 26), (38, 54)
"""Where the doors of the first and of the second half of a wall may be, in pixels."""


class FourRooms(Rooms):
    """An upright and a level wall through the middle, with two doors each: after Sutton, Precup, Singh 1999.

    closed: how often one of the four doors is closed, any of them; all rooms can still be reached. rebound: standard deviation of how far
    a wall throws back whoever runs into it, in pixels.

    distractors: how many other dots wander about, which no action moves, no inner wall stops, and only the border turns back. They are
    drawn where the dot is, half as bright: in a channel of their own they would be told apart at no cost, and as bright as the dot no
    picture would say which of them is meant. A goal is shown with distractors somewhere else, as at another time. What is observed then
    has `distractors` (B,T,2N), where they are.
    """

    numbers = ("door_up", "door_down", "door_left", "door_right", "closed")
    """The doors of the upright wall, from the top, and of the level one, from the left; which of them is closed, from 1, or 0."""

    def __init__(self, seed: int, *, closed: Fraction = 0.5, rebound: NonNegative = 0.5, distractors: Whole = 0) -> None:
        super().__init__(seed, rebound, distractors)
        self.closed = closed

    def drawn(self, key: Key) -> Tensor:
        doors = between(key, self.numbers[:4], (FIRST, SECOND, FIRST, SECOND))
        which = integers(key, "closed door", 1, 5).to(doors.dtype) * (uniform(key, "closed") < self.closed)
        return torch.cat((doors, which[:, None]), dim=1)

    def walls(self, numbers: Tensor) -> list[Wall]:
        closed = numbers[:, 4:] == torch.arange(1, 5, device=numbers.device)
        at = torch.full_like(numbers[:, 0], MIDDLE)
        return [Wall(at, numbers[:, :2], closed[:, :2], upright=True), Wall(at, numbers[:, 2:4], closed[:, 2:], upright=False)]
