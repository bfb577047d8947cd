"""Optical flow without learning, by OpenCV, for learned flow to be measured against.

DIS: dense inverse search (Kroeger et al. 2016, arXiv:1603.03590). Farneback: polynomial expansion (Farneback 2003).
Both look at structures of several pixels, and see more in small frames when these are enlarged: twice, which made DIS better on
`photos_in_motion` of 64 pixels.

    n samples    T frames    C channels    H W height and width
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hjepa.errors import Mistake

Method = Literal["dis", "farneback"]
Between = Callable[[Any, Any], Any]
"""Two frames (H, W) uint8 -> flow (H, W, 2)."""

ENLARGED = 2


def estimated(method: Method, frames: Tensor) -> Tensor:
    """Frames (n, T, C, H, W) in [0, 1] -> flow from each to the next (n, T-1, 2, H, W). Mistake where OpenCV is not installed."""
    try:
        import cv2
    except ImportError:
        raise Mistake(f"{method!r} is a method of OpenCV, which is not installed: pip install 'hjepa[flow]'") from None
    between = {"dis": _dis, "farneback": _farneback}[method](cv2)
    grey = _grey(frames).numpy()
    found = [_enlarged(cv2, between, one, other) for sample in grey for one, other in pairwise(sample)]
    n, steps, _, height, width = frames.shape
    return torch.from_numpy(np.array(found, np.float32)).view(n, steps - 1, height, width, 2).permute(0, 1, 4, 2, 3)


def _dis(cv2: Any) -> Between:
    made = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    made.setFinestScale(0)
    return lambda one, other: made.calc(one, other, None)


def _farneback(cv2: Any) -> Between:
    return lambda one, other: cv2.calcOpticalFlowFarneback(one, other, None, 0.5, 5, 13, 10, 5, 1.1, 0)


def _enlarged(cv2: Any, between: Between, one: Any, other: Any) -> Any:
    height, width = one.shape
    size = (ENLARGED * width, ENLARGED * height)
    large = between(*(cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in (one, other)))
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA) / ENLARGED


def _grey(frames: Tensor) -> Tensor:
    """(n, T, H, W) uint8."""
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R BT.601
    grey = (frames * weights).sum(dim=2) if frames.shape[2] == 3 else frames.mean(dim=2)
    return grey.clamp(0, 1).mul(255).round().to(torch.uint8)
