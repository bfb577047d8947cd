"""Handwritten digits that move and bounce, with exact positions, velocities and optical flow.

After Moving MNIST (Srivastava, Mansimov, Salakhutdinov 2015, arXiv:1502.04681), on the 1,797 scans of 8 x 8 pixels that come
with scikit-learn (Alpaydin, Kaynak 1998), so that nothing is downloaded. Sub-pixel motion is rendered, not rounded.

    B batch    T frames    G digits    S side of the canvas    N nodes along an axis of an image that is resampled
"""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hjepa.contracts import Batch, Count, NonNegative, Positive, Spec
from hjepa.randomness import Key, integers, normal, permuted, uniform
from hjepa_data.splits import SPLITS, known

SHARES = (0.7, 0.8, 1.0)
"""Where the part of the scans that belongs to train, valid and test ends."""
CELLS = 8
"""The background repeats after so many cells, which is twice the canvas."""


class MovingDigits:
    """Digits on straight paths with elastic bounces, over black or over a drifting texture.

    Options:
        digits: how many digits a sample shows, one to four; each has its own path, and later ones lie on top.
        frames: T, frames of a sample.
        size: S, side of the canvas in pixels.
        digit_size: side of a digit's box on the canvas in pixels; must be smaller than `size`.
        slowest, fastest: the range of a digit's speed in pixels a frame; it keeps its speed for the whole sample.
        noise: standard deviation of the normal noise added to each pixel.
        drift: speed of the background in pixels a frame; 0 is a black background without texture.
        flow: whether batches hold `flow`, which costs about as much time as the frames and twice their memory.
        samples: how many samples an epoch of `train` has.
        held_out: how many samples `valid` has, and `test`.

    A batch holds
        frames (B,T,1,S,S): ink 1 on background 0 (texture: 0 to 0.5); noise may leave [0, 1]. Digits are laid one over the
            other, `ink + (1 - ink) * what lies below`.
        label (B,G) int64: which digits they are, bottom first.
        position (B,T,G,2): (x, y) of each centre, -1 and 1 where the box touches the walls: one unit is
            `(size - digit_size) / 2` pixels.
        velocity (B,T,G,2): (x, y) in pixels a frame at the moment of the frame. A bounce between two frames shows in the
            second.
        flow (B,T-1,2,S,S): (x, y) in pixels from each frame to the next: for a pixel with ink, what its top-most digit really
            travels (also where it bounces on the way); for any other, what the background travels.

    Scans are dealt out to the splits once and for all, whatever the seed: no scan is in two splits.
    A sample is a pure function of the seed, the split and its id.
    """

    def __init__(
        self,
        seed: int,
        *,
        digits: Annotated[int, Ge(1), Le(4)] = 1,
        frames: Annotated[int, Ge(1), Le(10_000)] = 24,
        size: Count = 32,
        digit_size: Count = 14,
        slowest: Positive = 1.0,
        fastest: Positive = 3.0,
        noise: NonNegative = 0.0,
        drift: NonNegative = 0.0,
        flow: bool = False,
        samples: Count = 100_000,
        held_out: Count = 1000,
    ) -> None:
        if digit_size >= size:
            raise ValueError(
                f"digit_size is {digit_size}, but a digit must be smaller than the canvas (size is {size}) to move"
            )
        if slowest > fastest:
            raise ValueError(f"slowest is {slowest}, faster than fastest ({fastest})")
        self.seed, self.digits, self.frames, self.size, self.digit_size = seed, digits, frames, size, digit_size
        self.slowest, self.fastest, self.noise, self.drift, self.flow = slowest, fastest, noise, drift, flow
        self.lengths = {"train": samples, "valid": held_out, "test": held_out}
        self.name = "train"
        self.streams = {"frames": Spec(maps=((1, size, size),), ticks=tuple(range(frames)))}

    def split(self, name: str) -> MovingDigits:
        other = copy.copy(self)
        other.name = known(name)
        return other

    def __len__(self) -> int:
        return self.lengths[self.name]

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        key = Key.of(self.seed, "moving_digits", self.name, device=device).fold(ids)
        images, labels = scans(self.name, device)
        chosen = integers(key, "scan", 0, len(labels), (self.digits,))
        corner, velocity = self._paths(key)
        ink = self._ink(images[chosen], corner)
        ground, pan = self._background(key)
        batch = {
            "frames": self._frames(ink, ground, key),
            "label": labels[chosen],
            "position": (corner * (2 / (self.size - self.digit_size)) - 1).float(),
            "velocity": velocity.float(),
        }
        if self.flow:
            batch["flow"] = _flow(ink[:, :, :-1] > 0, corner.diff(dim=1).float(), pan)
        return batch

    def _paths(self, key: Key) -> tuple[Tensor, Tensor]:
        """(B,T,G,2) each, float64: the upper left corners of the boxes, and their velocities.

        Unfolded at the walls, a bouncing path is a straight line around a circle twice as long as the way from wall to wall.
        """
        reach = self.size - self.digit_size
        speed = self.slowest + (self.fastest - self.slowest) * uniform(key, "speed", (self.digits, 1)).double()
        straight = speed * _direction(key, "direction", self.digits)
        start = 2 * reach * uniform(key, "start", (self.digits, 2)).double()
        around = (start[:, None] + straight[:, None] * self._time(key)[:, None, None]) % (2 * reach)
        velocity = torch.where(around < reach, straight[:, None], -straight[:, None])
        return reach - (around - reach).abs(), velocity

    def _ink(self, images: Tensor, corner: Tensor) -> Tensor:
        """Images (B,G,N,N) with their corners at (B,T,G,2) -> (B,G,T,S,S), 0 outside of the boxes."""
        last = images.shape[-1] - 1
        at = self._pixels(corner) - corner[..., None]
        at = (at * (last / self.digit_size)).clamp(0, last).float().transpose(1, 2).flatten(0, 1)
        ink = resampled(images.flatten(0, 1), at[:, :, 0], at[:, :, 1])
        return ink.reshape(*images.shape[:2], *ink.shape[1:])

    def _background(self, key: Key) -> tuple[Tensor, Tensor]:
        """A texture of random nodes, (B,T,S,S), and what it travels in a frame, (B,2) in pixels; without drift all are 0."""
        if not self.drift:
            nothing = torch.zeros((), device=key.word.device)
            return nothing, nothing.expand(*key.word.shape, 2)
        nodes = 0.5 * uniform(key, "texture", (CELLS, CELLS))
        around = torch.cat([nodes, nodes[:, :1]], dim=1)
        around = torch.cat([around, around[:, :, :1]], dim=2)
        pan = self.drift * _direction(key, "drift", 1)
        moved = pan * self._time(key)[:, None]
        at = (self._pixels(moved) - moved[..., None]) * (CELLS / (2 * self.size))
        at = (at % CELLS).float()
        return resampled(around, at[:, :, 0], at[:, :, 1]), pan[:, 0].float()

    def _frames(self, ink: Tensor, ground: Tensor, key: Key) -> Tensor:
        frames = ground
        for layer in ink.unbind(dim=1):
            frames = layer + (1 - layer) * frames
        frames = frames[:, :, None]
        return frames + self.noise * normal(key, "noise", tuple(frames.shape[1:])) if self.noise else frames

    def _time(self, key: Key) -> Tensor:
        return torch.arange(self.frames, dtype=torch.float64, device=key.word.device)

    def _pixels(self, like: Tensor) -> Tensor:
        """(S,): where the centres of the pixels lie, in pixels from the edge of the canvas."""
        return torch.arange(self.size, dtype=torch.float64, device=like.device) + 0.5


@cache
def scans(split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The split's images (R,10,10) in [0,1], each with a rim of zeros, and their labels (R,)."""
    from sklearn.datasets import load_digits

    source = load_digits()
    count = len(source.target)
    ends = [0, *(round(count * share) for share in SHARES)]
    place = SPLITS.index(split)
    rows = permuted(torch.arange(ends[place], ends[place + 1]), count, Key.of("moving_digits", "scans"))
    images = torch.nn.functional.pad(torch.from_numpy(source.images).float() / 16, (1, 1, 1, 1))
    return images[rows].to(device), torch.from_numpy(source.target)[rows].long().to(device)


@cache
def _directions(device: torch.device) -> Tensor:
    """(4096, 2) float64 around the circle: looked up, so that cosines have the same bits in any batch and on any device."""
    angles = [math.tau * turn / 4096 for turn in range(4096)]
    return torch.tensor([(math.cos(angle), math.sin(angle)) for angle in angles], dtype=torch.float64, device=device)


def _direction(key: Key, stream: str, count: int) -> Tensor:
    """(B, count, 2) float64 of length 1."""
    table = _directions(key.word.device)
    return table[integers(key, stream, 0, len(table), (count,))]


def _flow(inked: Tensor, travel: Tensor, pan: Tensor) -> Tensor:
    """Where digits are (B,G,T-1,S,S), what they travel (B,T-1,G,2) and the background (B,2) -> (B,T-1,2,S,S)."""
    flow = pan[:, None, :, None, None]
    for layer, way in zip(inked.unbind(dim=1), travel.unbind(dim=2), strict=True):
        flow = torch.where(layer[:, :, None], way[..., None, None], flow)
    return flow


def resampled(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Images (R,N,N) at columns x and rows y, (R,T,S) each in [0, N-1] -> (R,T,S,S), bilinear.

    One axis after the other, by copying whole rows: no matrix product, whose bits could depend on the batch.
    """
    count, steps, size = x.shape
    columns = _between(images.mT.contiguous(), x.flatten(1))
    columns = columns.reshape(count, steps, size, -1).mT.flatten(0, 1)
    return _between(columns, y.flatten(0, 1)).reshape(count, steps, size, size)


def _between(rows: Tensor, at: Tensor) -> Tensor:
    """Rows (R,N,W) at places (R,P) in [0, N-1] -> (R,P,W), linear between neighbours."""
    count, nodes = rows.shape[:2]
    low = at.floor().clamp(max=nodes - 2)
    index = low.long() + nodes * torch.arange(count, device=at.device)[:, None]
    flat, upper = rows.flatten(0, 1), (at - low)[..., None]
    embedding = torch.nn.functional.embedding
    return embedding(index, flat).mul_(1 - upper).add_(embedding(index + 1, flat).mul_(upper))
