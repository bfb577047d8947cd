"""Optical flow on maps: warping, up-sampling, occlusion, and what matches where.

One convention everywhere. The flow of a map says for each of its pixels where it is seen in the other map, in pixels of the map it
lives on: I(p) ~ J(p + f(p)), channel 0 is x (to the right), channel 1 is y (down). Pixel centres lie on whole numbers, the first at
(0, 0), so the picture ends half a pixel outside of the outermost centres. Halving a map puts a centre between those of the four
pixels that it replaces: sizes are changed as `align_corners=False` has it.

    R rows (samples, steps, directions)    C H W map    r radius
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hjepa.nn.statistics import at_least_float32, without_autocast

TILE = 8
"""Side of the tiles that a cost volume is computed in: with a radius of 4, four of ten products of a tile are wanted."""

WORKSPACE = 1 << 18
"""Numbers that are at work at a time, beside the maps and volumes themselves: larger maps are gone through in parts."""


# --- from one map to the other ----------------------------------------------------------------------------------------


def warped(image: Tensor, flow: Tensor) -> Tensor:
    """Backward warp: image (R, C, H, W) seen from where flow (R, 2, H, W) points to, `image(p + flow(p))`, bilinear.

    Beyond the outermost pixel centres the image goes on as it ends. A flow of whole pixels copies: nothing is rounded.
    """
    rows, channels, height, width = image.shape
    pixels = at_least_float32(image).permute(0, 2, 3, 1).reshape(-1, channels)
    x, y = _landing(flow)
    column, row = (_floored(at, side) for at, side in ((x, width), (y, height)))
    first = torch.arange(rows, device=image.device)[:, None, None] * (height * width) + row * width + column
    steps = (width > 1, width * (height > 1))
    found = _Bilinear.apply(pixels, first.flatten(), (x - column).flatten(), (y - row).flatten(), steps)  # type: ignore[no-untyped-call]
    return found.view(rows, height, width, channels).permute(0, 3, 1, 2)


def _landing(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel lands, (R, H, W) each, kept within the outermost pixel centres."""
    x, y = _aim(flow)
    return x.clamp(0, flow.shape[3] - 1), y.clamp(0, flow.shape[2] - 1)


def _aim(flow: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel would land, (R, H, W) each: x, and y."""
    flow = at_least_float32(flow)
    columns, rows = (torch.arange(side, dtype=flow.dtype, device=flow.device) for side in (flow.shape[3], flow.shape[2]))
    return flow[:, 0] + columns, flow[:, 1] + rows[:, None]


def _floored(at: Tensor, side: int) -> Tensor:
    """The pixel before each position that has one after it; whatever is not a number becomes the first."""
    return at.detach().floor().long().clamp(0, max(side - 2, 0))


class _Bilinear(torch.autograd.Function):
    """Pixels (P, C) -> (M, C): between four neighbours, of which `first` (M,) is the upper left, at x and y (M,) from it.

    Part by part, one neighbour after the other; only places are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, first: Tensor, x: Tensor, y: Tensor, steps: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(pixels, first, x, y)
        ctx.steps = steps
        out = pixels.new_empty(len(first), pixels.shape[1])
        for places in _parts(first, pixels):
            (index, weight, *_), *others = _corners(first[places], x[places], y[places], steps)
            torch.mul(pixels.index_select(0, index), weight[:, None], out=out[places])
            for index, weight, *_ in others:
                out[places].addcmul_(pixels.index_select(0, index), weight[:, None])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pixels, first, x, y = ctx.saved_tensors
        of_pixels = torch.zeros_like(pixels) if ctx.needs_input_grad[0] else None
        of_x, of_y = torch.zeros_like(x), torch.zeros_like(y)
        for places in _parts(first, pixels):
            of_out = gradient[places].contiguous()
            for index, weight, by_x, by_y in _corners(first[places], x[places], y[places], ctx.steps):
                if of_pixels is not None:
                    of_pixels.index_add_(0, index, of_out * weight[:, None])
                if ctx.needs_input_grad[2]:
                    product = torch.linalg.vecdot(of_out, pixels.index_select(0, index))
                    of_x[places].addcmul_(product, by_x)
                    of_y[places].addcmul_(product, by_y)
        return of_pixels, None, of_x, of_y, None


def _parts(first: Tensor, pixels: Tensor) -> list[slice]:
    """Places that are at work together."""
    step = max(1, WORKSPACE // pixels.shape[1])
    return [slice(start, start + step) for start in range(0, len(first), step)]


def _corners(first: Tensor, x: Tensor, y: Tensor, steps: tuple[int, int]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of each neighbour: its place, its weight, and the derivatives of its weight by x and by y."""
    right, below = steps
    return [
        (first, (1 - x) * (1 - y), y - 1, x - 1),
        (first + right, x * (1 - y), 1 - y, -x),
        (first + below, (1 - x) * y, -y, 1 - x),
        (first + right + below, x * y, y, x),
    ]


def upsampled(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow (R, 2, H, W) on a map of another size (rows, columns), in pixels of that: values are scaled with the map."""
    height, width = flow.shape[2:]
    scale = flow.new_tensor([size[1] / width, size[0] / height])
    return F.interpolate(flow, size, mode="bilinear", align_corners=False) * scale[:, None, None]


# --- what is not seen in the other map --------------------------------------------------------------------------------


def inside(flow: Tensor) -> Tensor:
    """(R, H, W) bool: whether a pixel lands in the picture, which ends half a pixel outside of the outermost centres."""
    x, y = _aim(flow)
    height, width = flow.shape[2:]
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


@torch.no_grad()
def occluded(forward: Tensor, backward: Tensor) -> Tensor:
    """(R, H, W) bool: pixels that leave the picture, or from which going forth and back does not lead home.

    forward, backward: flows (R, 2, H, W) from a map to the other, and from there. The way home is missed by more than
    |forth + back|² > 0.01 (|forth|² + |back|²) + 0.5 (Sundaram, Brox, Keutzer 2010; UnFlow, arXiv:1711.07837, section 3.2).
    """
    back = warped(backward, forward)
    missed = (forward + back).square().sum(1)
    return (missed > 0.01 * (forward.square().sum(1) + back.square().sum(1)) + 0.5) | ~inside(forward)


@torch.no_grad()
def reached(backward: Tensor) -> Tensor:
    """(R, H, W): how many pixels of the other map come from each pixel, by their flow `backward` (R, 2, H, W): the range map.

    Where hardly anything came from, the pixel is not to be seen there (Wang et al. 2018, arXiv:1711.05890, section 3.3): `< 0.5`.
    """
    rows, _, height, width = backward.shape
    x, y = _aim(backward)
    column, row = x.floor(), y.floor()
    start = torch.arange(rows, device=backward.device)[:, None, None] * (height * width)
    total = x.new_zeros(rows * height * width)
    for right, below in ((0, 0), (1, 0), (0, 1), (1, 1)):
        at_x, at_y = column + right, row + below
        weight = (1 - (x - at_x).abs()) * (1 - (y - at_y).abs())
        there = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
        index = start + at_y.clamp(0, height - 1).long() * width + at_x.clamp(0, width - 1).long()
        total.index_add_(0, index.flatten(), (weight * there).flatten())
    return total.view(rows, height, width)


# --- what matches where -----------------------------------------------------------------------------------------------


def cost_volume(one: Tensor, other: Tensor, radius: int) -> Tensor:
    """(R, C, H, W) each -> (R, (2r+1)², H, W): the mean product of each pixel of `one` and those of `other` around it.

    Channel (dy + r) (2r + 1) + (dx + r) belongs to the displacement (dx, dy): row by row from the upper left to the lower right.
    Outside of the picture `other` is 0 (PWC-Net, arXiv:1709.02371, section 3). In float32 at least.
    """
    return _CostVolume.apply(at_least_float32(one), at_least_float32(other), radius)  # type: ignore[no-untyped-call]


class _CostVolume(torch.autograd.Function):
    """Tile by tile, as matrix products of the pixels of a tile of one map and of all around it in the other.

    A tile's wanted products lie in its matrix at even strides: they are copied out of it by one strided view. Only the two maps
    are kept for the backward pass, which takes the same way: gradients go into such a matrix, and two products lead out of it.
    """

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, radius: int) -> Tensor:
        ctx.save_for_backward(one, other)
        ctx.tiles = tiles = _Tiles(one, radius)
        out = one.new_empty(tiles.volume)
        with without_autocast(one):
            for band in tiles.bands:
                products = tiles.inner(one, band) @ tiles.around(other, band)
                tiles.put_volume(out, band, tiles.wanted(products))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        one, other = ctx.saved_tensors
        tiles = ctx.tiles
        of_one, of_other = torch.empty_like(one), torch.zeros_like(other)
        with without_autocast(one):
            for band in tiles.bands:
                inner, around = tiles.inner(one, band), tiles.around(other, band)
                products = inner.new_zeros(*inner.shape[:2], around.shape[2])
                tiles.wanted(products).copy_(tiles.of_volume(gradient, band))
                tiles.put_inner(of_one, band, products @ around.mT)
                tiles.add_around(of_other, band, inner.mT @ products)
        return of_one, of_other, None


class _Tiles:
    """How maps (R, C, H, W) lie in tiles of `TILE` pixels, in bands of some rows of tiles that are at work together.

    inner: the pixels of each tile (tiles, TILE², C), over C. around: those that they can match (tiles, C, side²). A band alone is
    padded to whole tiles, never a whole map.
    """

    def __init__(self, like: Tensor, radius: int) -> None:
        self.rows, self.channels, self.height, self.width = like.shape
        self.radius, self.side, self.reach = radius, TILE + 2 * radius, 2 * radius + 1
        self.across = -(-self.width // TILE)
        self.volume = (self.rows, self.reach**2, self.height, self.width)
        held = self.rows * self.across * self.side**2 * (self.channels + TILE**2)
        step = TILE * max(1, WORKSPACE // held)
        tall = -(-self.height // TILE) * TILE
        self.bands = [(start, min(start + step, tall)) for start in range(0, tall, step)]
        """First pixel, and first beyond: whole tiles, the last of which may end below the map."""

    def inner(self, one: Tensor, band: tuple[int, int]) -> Tensor:
        tiles = self._band(one, band, 0).reshape(self.rows, self.channels, -1, TILE, self.across, TILE)
        return tiles.permute(0, 2, 4, 3, 5, 1).reshape(-1, TILE**2, self.channels) / self.channels

    def put_inner(self, into: Tensor, band: tuple[int, int], values: Tensor) -> None:
        tiles = values.div_(self.channels).view(self.rows, -1, self.across, TILE, TILE, self.channels).permute(0, 5, 1, 3, 2, 4)
        there = into[:, :, slice(*band)]
        there.copy_(tiles.flatten(4).flatten(2, 3)[:, :, : there.shape[2], : self.width])

    def around(self, other: Tensor, band: tuple[int, int]) -> Tensor:
        tiles = self._band(other, band, self.radius).unfold(2, self.side, TILE).unfold(3, self.side, TILE)
        return tiles.permute(0, 2, 3, 1, 4, 5).reshape(-1, self.channels, self.side**2)

    def add_around(self, into: Tensor, band: tuple[int, int], values: Tensor) -> None:
        """Neighbouring tiles overlap: what belongs to the same pixel adds up."""
        r, size = self.radius, (band[1] - band[0] + 2 * self.radius, self.across * TILE + 2 * self.radius)
        folded = F.fold(values.view(self.rows, -1, values[0].numel()).mT, size, self.side, stride=TILE)
        above, below = max(band[0] - r, 0), min(band[1] + r, self.height)
        into[:, :, above:below] += folded[:, :, above - band[0] + r : below - band[0] + r, r : r + self.width]

    def wanted(self, products: Tensor) -> Tensor:
        """The displacements among the products (tiles, TILE², side²): (R, rows of tiles, tiles of a row, y, x, dy, dx)."""
        area, side = self.side**2, self.side
        shape = (len(products), TILE, TILE, self.reach, self.reach)
        chosen = products.as_strided(shape, (TILE**2 * area, TILE * area + side, area + 1, side, 1))
        return chosen.view(self.rows, -1, self.across, *shape[1:])

    def of_volume(self, volume: Tensor, band: tuple[int, int]) -> Tensor:
        """The same of a cost volume (R, (2r+1)², H, W)."""
        tiles = self._band(volume, band, 0).reshape(self.rows, self.reach, self.reach, -1, TILE, self.across, TILE)
        return tiles.permute(0, 3, 5, 4, 6, 1, 2)

    def put_volume(self, into: Tensor, band: tuple[int, int], wanted: Tensor) -> None:
        there = into[:, :, slice(*band)]
        tiles = wanted.permute(0, 5, 6, 1, 3, 2, 4)
        there.copy_(tiles.flatten(5).flatten(3, 4).flatten(1, 2)[:, :, : there.shape[2], : self.width])

    def _band(self, maps: Tensor, band: tuple[int, int], beyond: int) -> Tensor:
        """The rows of pixels of a band and some beyond it, as many columns beyond, and 0 where there is no map."""
        start, stop = band[0] - beyond, band[1] + beyond
        above, below = max(-start, 0), max(stop - self.height, 0)
        right = self.across * TILE - self.width + beyond
        return F.pad(maps[:, :, start + above : stop - below], (beyond, right, above, below))
