"""A dot that moves by its actions: frames, where it is, what it does and where it ends."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hjepa.contracts import Batch, Count, Spec
from hjepa.randomness import Key, uniform


class Dot:
    """`frames (B,T,1,S,S)`, `proprio (B,T,2)`, `actions (B,T-1,2)` in [-0.5, 0.5], `goal (B,2)`.

    still: all frames are said to be of one moment, as views of one picture are.
    """

    def __init__(self, seed: int, *, frames: Count = 8, size: Count = 8, samples: Count = 32, still: bool = False) -> None:
        self.seed, self.frames, self.size, self.samples, self.name = seed, frames, size, samples, "train"
        ticks = (0,) * frames if still else tuple(range(frames))
        image, place = Spec(maps=((1, size, size),), ticks=ticks, actions=2), Spec(width=2, ticks=ticks, actions=2)
        self.streams = {"frames": image, "proprio": place, "goal": Spec(width=2)}

    def split(self, name: str) -> Dot:
        other = copy.copy(self)
        other.name = name
        return other

    def __len__(self) -> int:
        return self.samples

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        key = Key.of(self.seed, "dot", self.name, device=device).fold(ids)
        actions = uniform(key, "actions", (self.frames - 1, 2)) - 0.5
        place = torch.cat((uniform(key, "start", (1, 2)), actions), dim=1).cumsum(dim=1)
        return {"frames": self.drawn(place), "proprio": place, "actions": actions, "goal": place[:, -1]}

    def drawn(self, place: Tensor) -> Tensor:
        """Places (B,T,2) -> images, a unit being an eighth of the side."""
        pixels = torch.arange(self.size, device=place.device) - self.size / 2
        away = (pixels - place[..., None] * (self.size / 8)).square()
        return torch.exp(-(away[..., 0, None, :] + away[..., 1, :, None]) / 2)[:, :, None]
