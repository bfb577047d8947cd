"""Pictures of optical flow: what is seen, what is true, what is predicted, and how far these are apart.

S samples    T frames    C channels    H W height and width    h w those of a coarser map
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hjepa.nn.warping import warped
from hjepa_motion.colours import coloured
from hjepa_motion.endpoints import Truth, errors

SHOWN = 4
"""Samples in a picture."""
UNKNOWN = 0.85
"""The grey of pixels whose flow is not known."""
OCCLUDED, TINT = (0.70, 0.0, 0.11), 0.7
"""The colour of what is occluded, and how much of it is that colour."""
BLACK = 3.0
"""Pixels that flow is wrong by where an error is black, as where Fl counts it."""

ERROR = "error, black at 3 px"
BOX = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1}

Panels = list[tuple[str, Tensor]]
"""Titles, and pictures (S, H, W, 3) in [0, 1]."""


def paint(
    figure: Any,
    frames: Tensor,
    true: Truth,
    flow: Tensor,
    occluded: Tensor | None,
    others: Mapping[str, Tensor],
    scales: Sequence[Tensor],
) -> None:
    """Two lines for each sample (S, T, C, H, W): its first two frames and flow between them; what follows from it, and where it is from.

    flow, and `others` by name: (S, T-1, 2, H, W); occluded: as predicted, (S, T-1, H, W); scales: coarse to fine, (S, T-1, 2, h, w)
    each in pixels of its own map. Colours are full at the fastest true flow of the sample.
    """
    fastest = (true.flow[:, 0].norm(dim=1) * true.known[:, 0]).amax(dim=(1, 2), keepdim=True).clamp(min=1.0)
    first, second, back = (_images(one, frames) for one in (frames[:, 0], frames[:, 1], warped(frames[:, 1], flow[:, 0])))
    error = errors(flow, true.flow)[:, 0]
    upper = [("frame 1", first), ("frame 2", second), ("true flow", _known(coloured(true.flow[:, 0], fastest), true))]
    upper += [(name, coloured(one[:, 0], fastest)) for name, one in {"predicted": flow, **others}.items()]
    upper += [(ERROR, _known((1 - error / BLACK).clamp(0, 1)[..., None].expand(-1, -1, -1, 3), true))]
    hidden = {"occluded, true": true.occluded, "occluded, predicted": occluded}
    lower = [("frame 2, warped back", back)]
    lower += [(title, _tinted(first, one[:, 0])) for title, one in hidden.items() if one is not None]
    lower += [_scale(scale[:, 0], fastest / frames.shape[-1]) for scale in scales]
    axes = _laid_out(figure, [upper, lower])
    for axis, wrong, known in zip(axes[::2, len(upper) - 1], error, true.known[:, 0], strict=True):
        words = f"{wrong[known].mean():.2f} px"
        axis.text(0.03, 0.05, words, transform=axis.transAxes, fontsize=7.5, color="#B3001B", bbox=BOX)
    _wheel(figure)


def _scale(flow: Tensor, fastest: Tensor) -> tuple[str, Tensor]:
    """Flow (S, 2, h, w) of a coarser map; fastest (S, 1, 1), in widths of the picture."""
    width = flow.shape[-1]
    return f"flow, {width} wide", coloured(flow, fastest * width)


def _images(images: Tensor, like: Tensor) -> Tensor:
    """(S, C, H, W) in the range of `like`, grey unless C is 3 -> (S, H, W, 3)."""
    low, high = like.min().clamp(max=0), like.max().clamp(min=1)
    shown = ((images - low) / (high - low)).clamp(0, 1).movedim(1, -1)
    return shown if shown.shape[-1] == 3 else shown.mean(dim=-1, keepdim=True).expand(-1, -1, -1, 3)


def _known(picture: Tensor, true: Truth) -> Tensor:
    return torch.where(true.known[:, 0, :, :, None], picture, UNKNOWN)


def _tinted(picture: Tensor, where: Tensor) -> Tensor:
    return torch.where(where[..., None], torch.lerp(picture, torch.tensor(OCCLUDED), TINT), picture)


def _laid_out(figure: Any, lines: Sequence[Panels]) -> Any:
    """Axes: the lines of a sample, one below the other, and below them those of the next."""
    place = {"left": 0.04, "right": 0.92, "top": 0.93, "bottom": 0.01, "wspace": 0.04, "hspace": 0.2}
    samples, columns = len(lines[0][0][1]), max(map(len, lines))
    axes = figure.subplots(samples * len(lines), columns, squeeze=False, gridspec_kw=place)
    for axis in axes.flat:
        axis.set_axis_off()
        axis.set_in_layout(False)  # a layout engine would leave room for labels
    for number, line in enumerate(lines):
        for column, (title, pictures) in enumerate(line):
            for axis, picture in zip(axes[number :: len(lines), column], pictures, strict=True):
                axis.imshow(picture.numpy(), interpolation="nearest")
                axis.set_title(title, fontsize=7.5, color="0.35", pad=2)
    return axes


def _wheel(figure: Any) -> None:
    """What the colours mean: where a pixel of that colour goes, seen from the middle."""
    at = torch.linspace(-1, 1, 101)
    flow = torch.stack([at.expand(101, -1), at[:, None].expand(-1, 101)])
    inside = (flow.norm(dim=0) <= 1)[..., None]
    axis = figure.add_axes((0.935, 0.82, 0.05, 0.1))
    axis.imshow(torch.cat([coloured(flow, 1.0), inside.float()], dim=-1).numpy())
    axis.set_axis_off()
    axis.set_in_layout(False)
