"""Handwritten digits that move and bounce, with exact positions, velocities and optical flow.

After Moving MNIST (Srivastava, Mansimov, Salakhutdinov 2015, arXiv:1502.04681), on the 1,797 scans of 8 x 8 pixels that come
with scikit-learn (Alpaydin, Kaynak 1998), so that nothing is downloaded. Sub-pixel motion is rendered, not rounded.

    B batch    T frames    G digits    S side of the canvas    N nodes along an axis of an image that is resampled
"""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hjepa.contracts import Batch, Count, NonNegative, Positive, Spec
from hjepa.nn.splits import Drawn
from hjepa.randomness import Key, integers, normal, uniform
from hjepa_data.scans import resampled, scans

CELLS = 8
"""The background repeats after so many cells, which is twice the canvas."""


class MovingDigits(Drawn):
    """Digits on straight paths with elastic bounces, over black or over a drifting texture.

    Options:
        digits: how many digits a sample shows, one to four; each has its own path, and later ones lie on top.
        frames: T, frames of a sample.
        size: S, side of the canvas in pixels.
        digit_size: side of a digit's box on the canvas in pixels; must be smaller than `size`.
        slowest, fastest: the range of a digit's speed in pixels a frame; it keeps its speed for the whole sample.
        noise: standard deviation of the normal noise added to each pixel.
        drift: speed of the background in pixels a frame; 0 is a black background without texture.
        bounces: whether paths are reflected at the walls; without, they begin where they stay within them, and only that far.
        turns: whether each digit once turns by 90 degrees, to the left or to the right at random, each in half of the cases, at a
            random frame of the middle half of the sample. Nothing before that frame tells which way, or when.
        flow: whether batches hold `flow` and `occluded`, which cost about as much time as the frames and twice their memory.
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
        heading (B,G) int64: the eighth of the circle that the velocity of the first frame points into, 0 around the right, 2
            around the bottom, and so on clockwise.
        flow (B,T-1,2,S,S): (x, y) in pixels from each frame to the next: for a pixel with ink, what its top-most digit really
            travels (also where it bounces on the way); for any other, what the background travels.
        occluded (B,T-1,S,S) bool: whether what the pixel shows cannot be seen in the next frame. A pixel belongs to the top-most
            digit that has any ink at its centre, however faint, else to the background, as in `flow`. Its centre moves by `flow`,
            to a place between pixels in general. It is occluded where a digit above the one that it belongs to has any ink at
            just that place, or where the place lies beyond the edge of the canvas, half a pixel outside of the outermost centres.
            What lies below faint ink shines through, and is not what is followed.
        turn, moment (B,G) int64, with `turns`: 1 for the right as one sees it (clockwise), -1 for the left; and the frame where it
            turns, the first with the new velocity.

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
        bounces: bool = True,
        turns: bool = False,
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
        way, room = fastest * (frames - 1), size - digit_size
        if not bounces and (turns or way > room):
            said = (
                "turns lead to walls"
                if turns
                else f"{frames - 1} steps of {fastest:g} pixels are {way:g}, and there are {room}"
            )
            raise ValueError(f"without bounces digits must stay within the walls: {said}")
        self.bounces = bounces
        self.seed, self.digits, self.frames, self.size, self.digit_size = seed, digits, frames, size, digit_size
        self.slowest, self.fastest, self.noise, self.drift = slowest, fastest, noise, drift
        self.turns, self.flow = turns, flow
        super().__init__(samples, held_out)
        self.streams = {"frames": Spec(maps=((1, size, size),), ticks=tuple(range(frames)))}

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
            "heading": _eighth(velocity[:, 0]),
        }
        if self.flow:
            inked, travel = ink[:, :, :-1] > 0, corner.diff(dim=1)
            batch["flow"] = _topmost(inked, travel.float()[..., None, None], pan[:, None, :, None, None])
            batch["occluded"] = self._occluded(images[chosen], corner[:, 1:], inked, travel, pan)
        if self.turns:
            batch["turn"], batch["moment"] = self._turns(key)
        return batch

    def _paths(self, key: Key) -> tuple[Tensor, Tensor]:
        """(B,T,G,2) each, float64: the upper left corners of the boxes, and their velocities.

        Unfolded at the walls, a bouncing path is a straight line around a circle twice as long as the way from wall to wall.
        """
        reach = self.size - self.digit_size
        speed = self.slowest + (self.fastest - self.slowest) * uniform(key, "speed", (self.digits, 1)).double()
        straight = speed * direction(key, "direction", self.digits)
        start = self._starts(uniform(key, "start", (self.digits, 2)).double(), straight)
        time, course = self._time(key)[:, None, None], straight[:, None]
        around = (start[:, None] + course * time) % (2 * reach)
        if self.turns:
            side, moment = self._turns(key)
            at = (start + straight * moment[..., None]) % (2 * reach)
            # A wall that was passed mirrors left and right; passed once in x and once in y, it does not.
            side = side * torch.where(at < reach, 1, -1).prod(dim=-1)
            turned = side[..., None] * torch.stack([-straight[..., 1], straight[..., 0]], dim=-1)
            since, later = time - moment[:, None, :, None], time >= moment[:, None, :, None]
            around = torch.where(later, (at[:, None] + turned[:, None] * since) % (2 * reach), around)
            course = torch.where(later, turned[:, None], course)
        velocity = torch.where(around < reach, course, -course)
        return reach - (around - reach).abs(), velocity

    def _starts(self, drawn: Tensor, straight: Tensor) -> Tensor:
        """drawn (B,G,2) in [0, 1) -> anywhere on the circle, or where a straight path (B,G,2) a frame meets no wall."""
        reach = self.size - self.digit_size
        if self.bounces:
            return 2 * reach * drawn
        way = straight * (self.frames - 1)
        return (-way).clamp(min=0) + drawn * (reach - way.abs())

    def _turns(self, key: Key) -> tuple[Tensor, Tensor]:
        """(B,G) int64 each: the side that each digit turns to, and the frame."""
        early = max(1, self.frames // 4)
        late = max(early + 1, self.frames - self.frames // 4)
        side = 2 * integers(key, "side", 0, 2, (self.digits,)) - 1
        return side, integers(key, "moment", early, late, (self.digits,))

    def _ink(self, images: Tensor, corner: Tensor) -> Tensor:
        """Images (B,G,N,N) with their corners at (B,T,G,2) -> (B,G,T,S,S), 0 outside of the boxes."""
        last = images.shape[-1] - 1
        at = self._pixels(corner) - corner[..., None]
        at = (at * (last / self.digit_size)).clamp(0, last).float().transpose(1, 2).flatten(0, 1)
        ink = resampled(images.flatten(0, 1), at[:, :, 0], at[:, :, 1])
        return ink.reshape(*images.shape[:2], *ink.shape[1:])

    def _occluded(self, images: Tensor, later: Tensor, inked: Tensor, travel: Tensor, pan: Tensor) -> Tensor:
        """(B,T-1,S,S), of images (B,G,N,N) whose corners are `later` (B,T-1,G,2) after they travelled.

        All pixels of a layer move alike: seen from where they land, what lies above is shifted against them as a whole.
        """
        ways = torch.cat([pan.double()[:, None, None].expand_as(travel[:, :, :1]), travel], dim=2)
        hidden = []
        for layer, way in enumerate(ways.unbind(dim=2)):
            above = self._ink(images[:, layer:], later[:, :, layer:] - way[:, :, None])
            hidden.append((above > 0).any(dim=1) | self._outside(way))
        return _topmost(inked, torch.stack(hidden[1:], dim=2)[:, :, :, None], hidden[0][:, :, None]).squeeze(2)

    def _outside(self, way: Tensor) -> Tensor:
        """(B,T,S,S): which pixels leave the canvas if all go this way (B,T,2)."""
        column, row = ((self._pixels(way) + way[..., None] - self.size / 2).abs() > self.size / 2).unbind(dim=2)
        return row[..., None] | column[..., None, :]

    def _background(self, key: Key) -> tuple[Tensor, Tensor]:
        """A texture of random nodes, (B,T,S,S), and what it travels in a frame, (B,2) in pixels; without drift all are 0."""
        if not self.drift:
            nothing = torch.zeros((), device=key.word.device)
            return nothing, nothing.expand(*key.word.shape, 2)
        nodes = 0.5 * uniform(key, "texture", (CELLS, CELLS))
        around = torch.cat([nodes, nodes[:, :1]], dim=1)
        around = torch.cat([around, around[:, :, :1]], dim=2)
        pan = self.drift * direction(key, "drift", 1)
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
def _directions(device: torch.device) -> Tensor:
    """(4096, 2) float64 around the circle: looked up, so that cosines have the same bits in any batch and on any device."""
    angles = [math.tau * turn / 4096 for turn in range(4096)]
    return torch.tensor([(math.cos(angle), math.sin(angle)) for angle in angles], dtype=torch.float64, device=device)


def direction(key: Key, stream: str, count: int) -> Tensor:
    """(B, count, 2) float64 of length 1."""
    table = _directions(key.word.device)
    return table[integers(key, stream, 0, len(table), (count,))]


def _eighth(velocity: Tensor) -> Tensor:
    """(..., 2) -> (...) int64, 0 to 7."""
    turn = torch.atan2(velocity[..., 1], velocity[..., 0]) / math.tau
    # Directions lie on the edges, too: a little more than half an eighth puts them on one side, whatever the rounding.
    return (8 * turn + 0.5 + 1e-6).floor().long() % 8


def _topmost(inked: Tensor, of_digits: Tensor, of_ground: Tensor) -> Tensor:
    """What belongs to each pixel: of its top-most digit with ink, else of the background.

    inked (B,G,T,S,S); of_digits (B,T,G,C,S,S) and of_ground (B,T,C,S,S), whose last axes and T may be 1 -> (B,T,C,S,S).
    """
    found = of_ground
    for layer, value in zip(inked.unbind(dim=1), of_digits.unbind(dim=2), strict=True):
        found = torch.where(layer[:, :, None], value, found)
    return found
