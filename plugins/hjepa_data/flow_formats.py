"""Optical flow as it lies on disks: Middlebury's `.flo`, KITTI's PNG of 16 bits, Sintel's PNG of what is occluded.

H W height and width of the frame that the flow belongs to
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa.errors import Mistake
from hjepa_data import pictures
from hjepa_data.manifest import Unreadable, reading

MAGIC = 202021.25
"""What a `.flo` begins with, as a float32 of little-endian bytes: they read "PIEH" (Baker et al. 2011, Middlebury)."""
HEADER = 12
"""Its bytes, with the width and the height."""
UNKNOWN = 1e9
"""Numbers beyond this say that the flow of a pixel is not known."""


def flo_size(path: Path) -> tuple[int, int]:
    """Height and width, where a `.flo` is as long as they say. `Unreadable` where not."""
    with reading(path), path.open("rb") as file:
        head = file.read(HEADER)
        if len(head) < HEADER:
            raise Unreadable(f"has {len(head)} bytes, and the header of a .flo alone has {HEADER}")
        magic, (width, height) = np.frombuffer(head, "<f4", 1)[0], np.frombuffer(head, "<i4", 2, 4).tolist()
        if magic != np.float32(MAGIC):
            raise Unreadable(f"begins with {magic:g}, a .flo with {MAGIC}")
        if min(width, height) < 1:
            raise Unreadable(f"says that it is {width} x {height} pixels large")
        pictures.fits(width, height)
        there, wanted = path.stat().st_size, HEADER + 8 * width * height
        if there != wanted:
            raise Unreadable(f"has {there} bytes; {width} x {height} pixels need {wanted}")
        return height, width


def flo(path: Path) -> tuple[Tensor, Tensor]:
    """Flow (2, H, W) in pixels, and where it is known (H, W). `Unreadable` where it is no such file."""
    height, width = flo_size(path)
    with reading(path):
        values = np.fromfile(path, "<f4", 2 * height * width, offset=HEADER).astype(np.float32).reshape(height, width, 2)
    return _known(torch.from_numpy(values).permute(2, 0, 1))


def kitti(path: Path) -> tuple[Tensor, Tensor]:
    """As `flo`, of a PNG of 16 bits: red is 2^15 + 64 x, green 2^15 + 64 y, blue is not 0 where they are known (Menze, Geiger 2015)."""
    cv2 = installed()
    pictures.verified(path)  # OpenCV gives as much of a broken file as there is, and says nothing
    with reading(path):
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.ndim != 3 or stored.shape[2] != 3 or stored.dtype != np.uint16:
        raise Unreadable("is no PNG of three channels of 16 bits")
    known, y, x = torch.from_numpy(stored.astype(np.int32)).unbind(dim=2)
    flow = (torch.stack([x, y]) - 2**15) / 64
    return flow * (known > 0), known > 0


def kitti_size(path: Path) -> tuple[int, int]:
    """Height and width of a PNG that can be read to its end. `Unreadable` where it cannot."""
    height, width = kitti(path)[1].shape
    return height, width


def mask(path: Path) -> Tensor:
    """(H, W) bool, of a picture in black and white. `Unreadable` where it is none."""
    return pictures.whole(path, 1)[0] > 127


def _known(flow: Tensor) -> tuple[Tensor, Tensor]:
    known = (flow.abs() < UNKNOWN).all(dim=0)
    return torch.where(known, flow, 0), known


def installed() -> Any:
    """OpenCV; Mistake where it is not there."""
    try:
        import cv2
    except ImportError:
        raise Mistake(
            "PNG of three channels of 16 bits are read by OpenCV, which is not installed: pip install 'hjepa[flow]'"
        ) from None
    return cv2
