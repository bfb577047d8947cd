"""What a flow must explain: how two pictures differ where they shall agree, and how smooth a flow is.

Differences are maps (R, H, W), so that whoever knows what is visible can weigh them. Pictures are (R, C, H, W) in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STABLE = 0.01**2, 0.03**2
"""c1 and c2 of SSIM."""

ROBUST = 0.4, 0.01
"""Of the census: the exponent q and the offset of (|x| + offset)^q."""


def l1(one: Tensor, other: Tensor) -> Tensor:
    """|one - other|, the mean over channels."""
    return (one - other).abs().mean(1)


def l2(one: Tensor, other: Tensor) -> Tensor:
    """(one - other)², the mean over channels."""
    return (one - other).square().mean(1)


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """(1 - SSIM) / 2 of squares of 3 x 3, the mean over channels (Wang et al. 2004): 0 for equal pictures, at most 1."""
    mean, mean_other = _around(one), _around(other)
    variance, variance_other = _around(one.square()) - mean.square(), _around(other.square()) - mean_other.square()
    covariance = _around(one * other) - mean * mean_other
    first, second = STABLE
    alike = (2 * mean * mean_other + first) * (2 * covariance + second)
    scale = (mean.square() + mean_other.square() + first) * (variance + variance_other + second)
    return ((1 - alike / scale) / 2).clamp(0, 1).mean(1)


def _around(x: Tensor) -> Tensor:
    """The mean of 3 x 3: first of three in a row, then of three such, which a CPU does faster than pooling."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    return (x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]) / 9


def census(one: Tensor, other: Tensor, patch: int = 7) -> Tensor:
    """How differently pixels stand out from those of the patch around them, which brightness does not change.

    Soft ternary codes t = d / sqrt(0.81 + d²) of the differences d to the pixel in 256 grey levels; the mean over the patch of
    (t - t')² / (0.1 + (t - t')²), made robust (DDFlow, arXiv:1902.09145; UFlow, arXiv:2006.04902).
    """
    squared = (_codes(one, patch) - _codes(other, patch)).square()
    exponent, offset = ROBUST
    return ((squared / (0.1 + squared)).mean(1) + offset).pow(exponent)


def _codes(image: Tensor, patch: int) -> Tensor:
    """(R, C, H, W) -> (R, patch², H, W)."""
    grey, reach = 255 * image.mean(1, keepdim=True), patch // 2
    padded = F.pad(grey, (reach,) * 4, mode="replicate")
    around = padded.unfold(2, patch, 1).unfold(3, patch, 1).flatten(-2).squeeze(1).movedim(-1, 1)
    difference = around - grey
    return difference * torch.rsqrt(0.81 + difference.square())


PHOTOMETRIC = {"l1": l1, "l2": l2, "ssim": ssim, "census": census}
"""What can be asked of frames, by name."""


def smoothness(flow: Tensor, image: Tensor, order: int, edges: float) -> Tensor:
    """(R,): the mean size of the flow's differences of that order along each axis, less where the picture has edges.

    flow (R, 2, H, W) is weighed with exp(-edges |difference of image|), the picture (R, C, H, W) being of the same size. First
    order is 0 for constant flow, second order for affine flow (UFlow, arXiv:2006.04902, section 3.2); order 0 is the size of the
    flow itself. 0 where a map is too small.
    """
    if order == 0:
        return flow.abs().mean((1, 2, 3))
    total = flow.new_zeros(len(flow))
    for axis in (2, 3):
        if flow.shape[axis] > order:
            change = flow.diff(n=order, dim=axis).abs().mean(1)
            reach = flow.shape[axis] - order
            contrast = (image.narrow(axis, order, reach) - image.narrow(axis, 0, reach)).abs().mean(1) / order
            total = total + ((-edges * contrast).exp() * change).mean((1, 2))
    return total / 2


def masked_mean(values: Tensor, visible: Tensor) -> Tensor:
    """(R, H, W) of which some are visible (R, H, W) bool -> (R,): the mean over these, 0 where there are none."""
    return (values * visible).sum((1, 2)) / visible.sum((1, 2)).clamp(min=1)
