"""Reading a quantity of the batch from states, linearly, and where it lies in the frames: what the probes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hjepa.contracts import Observation, States
from hjepa.errors import Mistake, listed, nearest

Features = Literal["online", "target"]
"""Whose states are read: the level's own, or those of its teacher."""

Tokens = Literal["flat", "mean"]
"""How the N tokens of a step are read: side by side, or as their mean."""

SAMPLES = 64
"""As many samples are enough to see where positions lie in the frames."""


def pooled(states: States, tokens: Tokens) -> Tensor:
    """(n, T, N, D), zeros where a token is not there; or (n, T, 1, D), the mean of those that are."""
    if states.valid is None:
        return states.tokens if tokens == "flat" else states.tokens.mean(dim=2, keepdim=True)
    there = states.valid[..., None]
    kept = states.tokens.masked_fill(~there, 0)
    return kept if tokens == "flat" else kept.sum(dim=2, keepdim=True) / there.sum(dim=2, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class Readout:
    """An affine map of standardised, flattened tokens, in float64."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    offset: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """(..., N, D) -> (..., P)."""
        return (tokens.flatten(-2).double() - self.mean) * self.scale @ self.weight + self.offset


def fitted(tokens: Tensor, target: Tensor, ridge: float) -> Readout:
    """The readout of tokens (n, T, N, D) that fits the target (n, T, P) best, by the smaller of the two normal equations."""
    x, y = tokens.flatten(0, 1).flatten(1).double(), target.flatten(0, 1)
    mean, offset, rows = x.mean(0), y.mean(0), len(x)
    deviation = x.std(0, correction=0)
    rounding = torch.finfo(tokens.dtype).eps * mean.abs()
    scale = torch.where(deviation > rounding, 1 / deviation, 0.0)
    x, y = (x - mean) * scale, y - offset
    eye = ridge * rows * torch.eye(min(x.shape), dtype=x.dtype)
    many = x.shape[1] > rows
    weight = x.T @ torch.linalg.solve(x @ x.T + eye, y) if many else torch.linalg.solve(x.T @ x + eye, x.T @ y)
    return Readout(mean, scale, weight, offset)


def aligned(seen: Observation, name: str) -> Tensor:
    """(n, T, P) float64: the target at the tick of each state."""
    target, time = told(seen, name), seen.states.time
    return target.gather(1, time[..., None].expand(*time.shape, target.shape[2]))


def told(seen: Observation, name: str) -> Tensor:
    """(n, ticks, P) float64: the target at every tick."""
    if name not in seen.batch:
        raise Mistake(
            f"the batch has no {name!r} to regress on; it has {listed(sorted(seen.batch))}{nearest(name, seen.batch)}"
        )
    target, reached = seen.batch[name].double(), int(seen.states.time.max()) + 1
    ticks = seen.batch["frames"].shape[1] if "frames" in seen.batch else reached
    if target.ndim > 1 and target.shape[1] == ticks:
        return target.reshape(*target.shape[:2], -1)
    return target.reshape(len(target), 1, -1).expand(-1, reached, -1)


def r2(predicted: Tensor, truth: Tensor) -> float:
    """1 - SSE/SST, the mean over the target's dimensions that vary; 0 where none does."""
    predicted, truth = predicted.flatten(0, -2), truth.flatten(0, -2)
    total = (truth - truth.mean(0)).square().sum(0)
    varies = total > 0
    share = (predicted - truth).square().sum(0)[varies] / total[varies]
    return float((1 - share).mean()) if varies.any() else 0.0


def rmse(predicted: Tensor, truth: Tensor) -> float:
    """Over samples, steps and dimensions, in the target's unit."""
    return float((predicted - truth).square().mean().sqrt())


def to_pixels(frames: Tensor, time: Tensor, truth: Tensor) -> Tensor | None:
    """(2, 2): factor and offset that take positions (x, y) to pixels, or None where the frames show no such thing.

    frames (n, ticks, C, H, W); time (n, T): the ticks at which the positions `truth` (n, T, P) are true.

    A position's unit is the source's own affair. It is found from the frames: what stands out of the background has its centre
    at the mean position, up to a factor and an offset. The background is that of all samples, or each has its own.
    """
    if truth.shape[-1] % 2:
        return None
    time, position = time[:SAMPLES], truth[:SAMPLES].reshape(-1, truth.shape[-1] // 2, 2).mean(1)
    every = frames[: len(time)].double().mean(2)
    shown = every.gather(1, time[..., None, None].expand(*time.shape, *every.shape[2:]))
    for ground in (shown.flatten(0, 1).median(0).values, every.median(1, keepdim=True).values):
        centre = _centre((shown - ground).square()).flatten(0, 1)
        deviation = position - position.mean(0)
        factor = (deviation * centre).sum(0) / deviation.square().sum(0).clamp(min=1e-9)
        place = torch.stack([factor, centre.mean(0) - factor * position.mean(0)])
        if r2(place[0] * position + place[1], centre) > 0.9:
            return place
    return None


def _centre(ink: Tensor) -> Tensor:
    """(n, T, H, W) -> (n, T, 2): x and y."""
    ink = ink / ink.sum((-2, -1), keepdim=True).clamp(min=1e-9)
    rows, columns = (torch.arange(side, dtype=ink.dtype) for side in ink.shape[-2:])
    return torch.stack([(ink.sum(-2) * columns).sum(-1), (ink.sum(-1) * rows).sum(-1)], dim=-1)


def picture(axis: Any, frame: Tensor, like: Tensor) -> None:
    """A frame (C, H, W), grey unless C is 3, in the range of `like`."""
    low, high = float(like.min()), float(like.max())
    image = (frame.float() - low) / max(high - low, 1e-9)
    image = image.permute(1, 2, 0) if len(image) == 3 else image.mean(0)
    axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
