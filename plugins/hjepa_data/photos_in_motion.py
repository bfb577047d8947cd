"""Photographs cut into layers that move smoothly, with exact flow and occlusion: motion of natural textures, without a download.

Layered worlds of photographs are how optical flow has long been taught where the truth must be known (FlyingChairs: Dosovitskiy et
al. 2015, arXiv:1504.06852; AutoFlow: Sun et al. 2021, arXiv:2104.14544). Here the inverse of every motion is known in closed form:
flow and occlusion are what they are said to be, to the rounding of float32.

    B batch    T frames    S side of the canvas    C channels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from hjepa.contracts import Batch, Count, Fraction, NonNegative, Positive, Spec
from hjepa.nn.splits import Drawn
from hjepa.randomness import Key, integers, normal, uniform
from hjepa_data.motions import Motion, drawn
from hjepa_data.moving_digits import direction
from hjepa_data.outlines import Outline, outline
from hjepa_data.photos import Texture, bundled, of_folder

STRIPS = {"train": (0.0, 0.5), "test": (0.5, 0.75), "valid": (0.75, 1.0)}
"""Which part of the width of each photograph belongs to a split. Of the two photographs of scikit-learn, the last has least to see."""

DRAWN = 4
"""Parts of photographs that are looked at for a layer; the one with most structure is taken: the open sky shows no motion."""


@dataclass(frozen=True)
class Layer:
    """Where it goes, how far it reaches, and what it shows, each in its own points (B,T,2,S,S)."""

    motion: Motion
    outline: Outline | None
    """None of the background, which reaches everywhere."""
    texture: Texture

    def cover(self, point: Tensor) -> Tensor:
        return torch.ones_like(point[:, :, 0]) if self.outline is None else self.outline.cover(point)


class PhotosInMotion(Drawn):
    """A background and shapes before it, each filled with a part of a photograph, each with its own motion.

    Options:
        folder: images to use instead of the two that come with scikit-learn, with those in the folders within it. Of each the middle
            square is taken, `side` pixels wide.
        photos, side: how many images of the folder are used, the first in the order of a hash of their paths, and how large they are
            kept in memory, `2 * channels * side * side` bytes each.
        bad: which share of the images of the folder may be unreadable; more is a mistake.
        frames: T, frames of a sample.
        size: S, side of the canvas in pixels.
        channels: 3, or 1 for grey.
        layers: how many, the background among them. Later ones lie on top; shapes are 0.3 to 0.6 of the canvas wide on average.
        displacement: the furthest that anything travels in a frame, in pixels.
        affine, bend: which shares of it are left to turning, growing and shearing, and to bending in waves. The rest is for layers
            that travel as a whole, at any speed up to it.
        zoom: how many pixels of the canvas a pixel of the photograph covers at least; twice as many at most.
        brightness: each frame is darker or brighter than the photographs by a random factor within 1 - `brightness` and 1 + it.
        noise: standard deviation of the normal noise added to each pixel.
        samples: how many samples an epoch of `train` has.
        held_out: how many samples `valid` has, and `test`.

    A batch holds
        frames (B,T,C,S,S): in [0,1], but for brightness and noise.
        flow (B,T-1,2,S,S): (x, y) in pixels from each frame to the next, of the layer that a pixel belongs to: the top-most one that
            covers at least half of it.
        occluded (B,T-1,S,S) bool: whether the layer that a pixel belongs to cannot be seen where its flow leads: a higher layer covers
            at least half of a pixel there, or the place lies beyond the edge of the canvas.

    The left half of every photograph is for `train`, the next quarter for `test`, the last for `valid`: no part of a photograph is in
    two splits. Where a layer shows more than its part, that is mirrored. For each layer four places are drawn, and the one is taken
    around which brightness varies most.
    A sample is a pure function of the photographs, the seed, the split and its id.
    """

    def __init__(
        self,
        seed: int,
        *,
        folder: str = "",
        photos: Count = 256,
        side: Count = 256,
        bad: Fraction = 0.2,
        frames: Annotated[int, Ge(1), Le(64)] = 2,
        size: Count = 64,
        channels: Literal[1, 3] = 3,
        layers: Annotated[int, Ge(1), Le(9)] = 4,
        displacement: Positive = 8.0,
        affine: Fraction = 0.2,
        bend: Fraction = 0.1,
        zoom: Positive = 1.0,
        brightness: Fraction = 0.0,
        noise: NonNegative = 0.0,
        samples: Count = 100_000,
        held_out: Count = 1000,
    ) -> None:
        if affine + bend > 1:
            raise ValueError(
                f"affine ({affine}) and bend ({bend}) are shares of the displacement; together they are more than all of it"
            )
        root = Path(folder).expanduser().absolute()
        self.photos = partial(of_folder, root, side, photos, channels, bad) if folder else partial(bundled, channels)
        self.photos(torch.device("cpu"))  # what is wrong with a folder is said at once
        self.seed, self.frames, self.size, self.channels, self.layers = seed, frames, size, channels, layers
        self.displacement, self.affine, self.bend, self.zoom = displacement, affine, bend, zoom
        self.brightness, self.noise = brightness, noise
        super().__init__(samples, held_out)
        self.streams = {"frames": Spec(maps=((channels, size, size),), ticks=tuple(range(frames)))}

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        key = Key.of(self.seed, "photos_in_motion", self.name, device=device).fold(ids)
        time = torch.arange(self.frames, device=device) - (self.frames - 1) / 2
        layers = [self._layer(key.fold(number), number > 0) for number in range(self.layers)]
        frames, flow, owner = self._seen(layers, time)
        frames = frames.movedim(-1, 2)
        if self.brightness:
            frames = frames * (1 + self.brightness * (2 * uniform(key, "brightness", (self.frames, 1, 1, 1)) - 1))
        if self.noise:
            frames = frames + self.noise * normal(key, "noise", tuple(frames.shape[1:]))
        return {"frames": frames, "flow": flow, "occluded": self._occluded(layers, flow, owner, time)}

    def _seen(self, layers: list[Layer], time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (B,T,S,S,C), and of all but the last the flow (B,T-1,2,S,S) and the layer that each pixel belongs to (B,T-1,S,S)."""
        pixels = self._pixels(time)
        point = layers[0].motion.origin(pixels, time)
        frames, flow = layers[0].texture(point), layers[0].motion.way(point[:, :-1], time[:-1])
        owner = torch.zeros_like(flow[:, :, 0], dtype=torch.int64)
        for number, layer in enumerate(layers[1:], start=1):
            point = layer.motion.origin(pixels, time)
            cover = layer.cover(point)
            frames = torch.lerp(frames, layer.texture(point), cover[..., None])
            own = cover[:, :-1] >= 0.5
            flow = torch.where(own[:, :, None], layer.motion.way(point[:, :-1], time[:-1]), flow)
            owner = owner.masked_fill(own, number)
        return frames, flow, owner

    def _occluded(self, layers: list[Layer], flow: Tensor, owner: Tensor, time: Tensor) -> Tensor:
        landed = self._pixels(flow) + flow
        occluded = (landed.abs() > self.size / 2).any(dim=2)
        for number, layer in enumerate(layers[1:], start=1):
            covered = layer.cover(layer.motion.origin(landed, time[1:])) >= 0.5
            occluded |= covered & (owner < number)
        return occluded

    def _pixels(self, like: Tensor) -> Tensor:
        """(2,S,S): (x, y) of the centre of each pixel, from the middle of the canvas."""
        at = torch.arange(self.size, device=like.device) - (self.size - 1) / 2
        return torch.stack([at.expand(self.size, -1), at[:, None].expand(-1, self.size)])

    def _layer(self, key: Key, shaped: bool) -> Layer:
        """A shape anywhere on the canvas, or the background, which is all of it and a little more."""
        centre = self.size * (uniform(key, "centre", (2,)) - 0.5) * shaped
        edge = outline(key, 0.15 * self.size, 0.3 * self.size) if shaped else None
        # What is seen of the background at any time lies within its diagonal and the way that it has gone since the middle.
        reach = (0.6 if shaped else 0.71) * self.size + self.displacement * (self.frames - 1) / 2
        shares = (1 - self.affine - self.bend, self.affine, self.bend)
        travel, affine, bend = (self.displacement * share for share in shares)
        return Layer(drawn(key, centre, reach, travel, affine, bend, self.frames), edge, self._texture(key))

    def _texture(self, key: Key) -> Texture:
        photos = self.photos(key.word.device)
        low, high = (round(share * photos.width) for share in STRIPS[self.name])
        photo, place = integers(key, "photo", 0, photos.count, (DRAWN,)), uniform(key, "place", (DRAWN, 2))
        x, y = low + place[..., 0] * (high - 1 - low), place[..., 1] * (photos.height - 1)
        best = photos.structure[photo, y.long(), x.long()].argmax(dim=1, keepdim=True)
        return Texture(
            photos=photos,
            photo=photo.gather(1, best)[:, 0],
            start=torch.cat([x.gather(1, best), y.gather(1, best)], dim=1),
            turn=direction(key, "turned", 1)[:, 0].float() / (self.zoom * (1 + uniform(key, "zoom")[:, None])),
            low=low,
            high=high - 1,
        )
