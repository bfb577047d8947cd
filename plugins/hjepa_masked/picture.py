"""What a masked level sees, as a picture: images, what is hidden of them, and what the states of their parts have in common.

States are shown by their first three principal components as red, green and blue (Oquab et al. 2024, DINOv2). What is the same in
all samples is taken off first, place by place: states that only say where a token lies would make the same pretty picture of each.

    S samples    H W pixels    h w tokens of an image, or of one moment of a clip    D width of a token
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa.contracts import Packed, States
from hjepa.nn.packing import sets

SHOWN = 6
"""Samples in a picture."""
BESIDE = 2
"""Samples that lie side by side."""
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
"""One a set of targets; told apart by people who see colours differently too (Okabe & Ito 2008)."""
TINT, PALE = 0.65, 0.75
"""How much of a target is colour, and how much of what is neither seen nor asked for is white."""
CLIPPED = 0.02
"""The share of states that lie beyond full colour."""
GAP = 0.15
"""Between samples that lie side by side, in panels."""
ABOVE, BELOW = 0.5, 0.1
"""Room for titles above the panels, and room below them, in rows of panels."""


def draw(figure: Any, below: States, window: int, masks: Mapping[str, Sequence[Packed]], states: Mapping[str, States]) -> None:
    """A row of panels for each of the first samples: their middle step, of a clip its middle frame.

    below: maps (B, T, window * C, H, W). masks: `[context, targets...]` of each family, B*T rows. states: by name, with tokens
    (B, T, N, D) on one grid, (h, w) or (time, h, w). Principal components are those of all samples.
    """
    frame, step, palette = window // 2, below.steps // 2, cycle(COLOURS)
    shown = images(below.maps[0][:SHOWN, step].chunk(window, dim=1)[frame])
    grid = next(iter(states.values())).grid
    moment = frame * math.prod(grid[:-2]) // window

    def now(x: Tensor) -> Tensor:
        """(B*T, N, ...) -> (B, h, w, ...)."""
        return x.reshape(*below.time.shape, -1, *grid[-2:], *x.shape[2:])[:, step, moment]

    panels = [("image\n" if window == 1 else f"frame {frame + 1}\nof {window}", shown)]
    for family, packs in masks.items():
        chosen = torch.stack([now(_chosen(one, below.time.numel(), math.prod(grid)))[:SHOWN] for one in packs])
        title = f"{family if len(masks) > 1 else 'masked'}\ntargets tinted"
        panels.append((title, overlay(shown, chosen, [next(palette) for _ in packs[1:]])))
    for name, of in states.items():
        colours, share = components(now(of.tokens.flatten(0, 1)))
        panels.append((f"{name}, PCA\n{100 * share:.0f} % of variance", enlarged(colours[:SHOWN], shown)))
    paint(figure, panels)


def images(maps: Tensor) -> Tensor:
    """(S, C, H, W) -> (S, H, W, 3) in [0, 1], grey unless C is 3. Values beyond [0, 1] widen the range, a few outliers aside."""
    x = maps.float()
    low, high = min(float(_below(x.flatten(), 0.01)), 0), max(float(_below(x.flatten(), 0.99)), 1)
    x = ((x - low) / (high - low)).clamp(0, 1)
    return (x if x.shape[1] == 3 else x.mean(1, keepdim=True).expand(-1, 3, -1, -1)).movedim(1, -1)


def overlay(shown: Tensor, chosen: Tensor, colours: Sequence[str]) -> Tensor:
    """shown (S, H, W, 3); chosen (1 + targets, S, h, w) bool: the context is as it was, each target in its colour, the rest pale.

    What several targets have in common has the mean of their colours.
    """
    context, *targets = (enlarged(one[..., None].float(), shown) for one in chosen)
    paints = shown.new_tensor([[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in colours])
    count = torch.stack(targets).sum(dim=0)
    mixed = torch.stack([one * paint for one, paint in zip(targets, paints, strict=True)]).sum(dim=0) / count.clamp(min=1)
    rest = torch.lerp(shown, torch.ones_like(shown), PALE)
    return torch.where(context > 0, shown, torch.where(count > 0, torch.lerp(shown, mixed, TINT), rest))


def components(tokens: Tensor) -> tuple[Tensor, float]:
    """tokens (S, h, w, D) -> colours (S, h, w, 3) in [0, 1], and the share of the variance that they show.

    Grey is the mean of a place over samples. Each direction points to where its values are skewed, so that the picture is the
    same in whatever basis the states are written; where nothing varies all is grey.
    """
    x = tokens.double()
    rows = (x - x.mean(dim=0)).flatten(0, 2)
    variances, directions = torch.linalg.eigh(rows.T @ rows)
    along = F.pad(rows @ directions[:, -3:].flip(1), (0, max(0, 3 - rows.shape[1])))
    along = along * torch.where(along.pow(3).sum(dim=0) < 0, -1.0, 1.0)
    least = 1e-5 * float(x.abs().max()) + 1e-12  # what varies less is rounding
    colours = 0.5 + along / _below(along.abs(), 1 - CLIPPED).clamp(min=least) / 2
    share = variances[-3:].sum() / variances.sum().clamp(min=len(rows) * least**2)
    return colours.clamp(0, 1).view(*tokens.shape[:3], 3).float(), float(share)


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """x (S, h, w, C) -> (S, H, W, C), the size of `like` (S, H, W, 3), in blocks."""
    return F.interpolate(x.movedim(-1, 1), like.shape[1:3], mode="nearest-exact").movedim(1, -1)


def paint(figure: Any, panels: Sequence[tuple[str, Tensor]]) -> None:
    """Titles, and pictures (S, H, W, 3) of the same samples: those of a sample side by side, and samples in BESIDE columns."""
    beside, wide = min(BESIDE, len(panels[0][1])), len(panels)
    lines = math.ceil(len(panels[0][1]) / beside)
    widths = (([1.0] * wide + [GAP]) * beside)[:-1]
    place = {
        "left": 0.04,
        "right": 0.985,
        "top": 1 - ABOVE / (1 + lines),
        "bottom": BELOW / (1 + lines),
        "wspace": 0.04,
        "hspace": 0.04,
    }
    axes = figure.subplots(lines, len(widths), squeeze=False, gridspec_kw={**place, "width_ratios": widths})
    for axis in axes.flat:
        axis.set_axis_off()
        axis.set_in_layout(False)  # a layout engine would leave room for labels
    for column, (title, pictures) in enumerate(panels):
        for sample, picture in enumerate(pictures.cpu().numpy()):
            axis = axes[sample // beside, sample % beside * (wide + 1) + column]
            axis.imshow(picture, interpolation="nearest")
            if sample < beside:
                axis.set_title(title, fontsize=8.5, color="0.35", pad=3)


def _chosen(packs: Packed, rows: int, tokens: int) -> Tensor:
    """A set for each row -> (rows, tokens) bool: which are in it."""
    found = torch.zeros(rows, tokens, dtype=torch.bool, device=packs.values.device)
    found[packs.row[sets(packs)], packs.values[:, 0]] = True
    return found


def _below(x: Tensor, share: float) -> Tensor:
    """x (R, ...) -> (...): what that share of them is not above."""
    return x.kthvalue(max(1, math.ceil(share * len(x))), dim=0).values
