"""Image files as tensors, by Pillow: opened with care, every mode made grey or RGB, cut to a square.

S side    C channels
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hjepa_data.manifest import Unreadable, reading

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Those that are tried, whatever a name says: none that runs another program."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
PIXELS = 100_000_000
"""More than any photograph has; unpacked, so many take a third of a gigabyte."""


def look(path: Path) -> int:
    """1, where a file can be read to its end; `Unreadable` where not."""
    with reading(path), _opened(path) as image:
        image.draft(None, (image.width // 8, image.height // 8))  # all of a JPEG is read, at an eighth of its size
        _coloured(image, 3)
    return 1


def read(path: Path, size: int, channels: int) -> Tensor:
    """(C, S, S) uint8: the middle of an image, upright, with its shorter side at `size`. `Unreadable` where it cannot be read."""
    with reading(path), _opened(path) as image:
        image.draft(None, (2 * size, 2 * size))
        return square(_coloured(ImageOps.exif_transpose(image), channels), size)


def shape(path: Path) -> tuple[int, int]:
    """Height and width, as the header of a file says. `Unreadable` where it says nothing."""
    with reading(path), _opened(path) as image:
        return image.height, image.width


def verified(path: Path) -> None:
    """`Unreadable` where a file says itself that something is missing or changed."""
    with reading(path), _opened(path) as image:
        image.verify()


def whole(path: Path, channels: int) -> Tensor:
    """(C, H, W) uint8: an image as it is stored, pixel by pixel. `Unreadable` where it cannot be read."""
    with reading(path), _opened(path) as image:
        coloured = _coloured(image, channels)
        return torch.from_numpy(np.array(coloured)).reshape(image.height, image.width, -1).permute(2, 0, 1)


def square(image: Image.Image, size: int) -> Tensor:
    """(C, S, S) uint8. What lies outside of the middle is never resized, so that a long strip takes no room."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    cut = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(cut)).reshape(size, size, -1).permute(2, 0, 1)


def fits(width: int, height: int) -> None:
    """`Unreadable` where a picture of that size is not to be unpacked."""
    if width * height > PIXELS:
        raise Unreadable(f"{width} x {height} pixels are too many; up to {PIXELS:,} are unpacked")


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise Unreadable("does not begin like an image") from None
    except Image.DecompressionBombError:
        raise Unreadable(f"its pixels are too many; up to {PIXELS:,} are unpacked") from None
    fits(*image.size)
    return image


def _coloured(image: Image.Image, channels: int) -> Image.Image:
    """Grey or RGB, of 8 bits; the first frame where there are several. Transparency is dropped, not painted."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unreadable(f"its numbers (mode {image.mode}) have no range that says what is white")
    if image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB" if channels == 3 else "L")
