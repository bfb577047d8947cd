"""Photographs as one table of pixels that any of them can be looked up in: those that come with scikit-learn, or a user's own.

P photographs    H W their height and width    C channels
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_data import pictures
from hjepa_data.folder import dealt
from hjepa_data.manifest import manifest, quietly

AROUND = 12
"""Pixels to each side: about as many as a shape on a small canvas shows."""


@dataclass(frozen=True)
class Photos:
    """Photographs of one size."""

    pixels: Tensor
    """(P*H*W, 2, C) uint8: each pixel, and the next one, so that both are found at once."""
    structure: Tensor
    """(P,H,W): how much brightness varies around each pixel."""
    count: int
    height: int
    width: int

    def at(self, photo: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(..., C) in [0, 1] at columns x and rows y of the photographs `photo` (all broadcast to one shape), bilinear.

        x is in [0, W - 1], y in [0, H - 1].
        """
        left, top = x.floor().clamp(max=self.width - 2), y.floor().clamp(max=self.height - 2)
        right, below = (x - left)[..., None], (y - top)[..., None]
        first = (photo * self.height + top.long()) * self.width + left.long()
        upper, lower = (self._between(first + row, right) for row in (0, self.width))
        return torch.lerp(upper, lower, below).mul_(1 / 255)

    def _between(self, first: Tensor, share: Tensor) -> Tensor:
        here, there = self.pixels[first].float().unbind(dim=-2)
        return torch.lerp(here, there, share)


@dataclass(frozen=True)
class Texture:
    """A part of a photograph for each sample (B,), turned and enlarged; mirrored where it ends."""

    photos: Photos
    photo: Tensor
    """(B,) int64."""
    start: Tensor
    """(B,2): (x, y) in the photograph of the point (0, 0)."""
    turn: Tensor
    """(B,2): (x, y) in the photograph of one pixel to the right."""
    low: int
    """The columns of the photographs that may be shown, from here"""
    high: int
    """to here."""

    def __call__(self, point: Tensor) -> Tensor:
        """(B,T,2,S,S) -> (B,T,S,S,C)."""
        x, y = point.unbind(dim=2)
        right, down = self.turn[:, :, None, None, None].unbind(dim=1)
        left, top = self.start[:, :, None, None, None].unbind(dim=1)
        column = _mirrored(left + right * x - down * y, self.low, self.high)
        row = _mirrored(top + down * x + right * y, 0, self.photos.height - 1)
        return self.photos.at(self.photo[:, None, None, None], column, row)


def _mirrored(place: Tensor, low: int, high: int) -> Tensor:
    """To and fro between two ends."""
    return high - ((place - low) % (2 * (high - low)) - (high - low)).abs()


@cache
def bundled(channels: int, device: torch.device) -> Photos:
    """The two that come with scikit-learn, 427 x 640: a temple and a flower."""
    from sklearn.datasets import load_sample_images

    return _table(torch.stack([torch.tensor(image) for image in load_sample_images().images]), channels, device)


@cache
def of_folder(root: Path, side: int, count: int, channels: int, bad: float, device: torch.device) -> Photos:
    """The first `count` images of a folder in the order of a hash of their paths: the middle square of each, side x side."""
    found = dealt(manifest(root, "images", pictures.ENDINGS, pictures.look, bad), 0, 0)
    here = min(count, len(found.splits["train"]))
    with quietly():
        read = found.read("train", range(here), 1, lambda path, _: pictures.read(root / path, side, channels))
    return _table(torch.stack([image.permute(1, 2, 0) for _, image in read]), channels, device)


def _table(images: Tensor, channels: int, device: torch.device) -> Photos:
    """Of images (P,H,W,C); grey where one channel is wanted of three."""
    count, height, width, given = images.shape
    if given > channels:
        weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
        images = (images * weights).sum(dim=-1, keepdim=True).round().to(torch.uint8)
    pixels = images.flatten(0, 2)
    pairs = torch.stack([pixels, pixels.roll(-1, 0)], dim=1)
    return Photos(pairs.to(device), _structure(images).to(device), count, height, width)


def _structure(images: Tensor) -> Tensor:
    """Images (P,H,W,C) -> (P,H,W): the standard deviation of brightness within `AROUND` pixels."""
    grey = images.float().mean(dim=-1, keepdim=True).movedim(-1, 1)
    mean, square = (
        F.avg_pool2d(values, 2 * AROUND + 1, stride=1, padding=AROUND, count_include_pad=False)
        for values in (grey, grey.square())
    )
    return (square - mean.square()).clamp(min=0).sqrt()[:, 0]
