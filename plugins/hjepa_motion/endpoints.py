"""How wrong optical flow is, pixel by pixel and on average: end-point errors, over all that is known and over parts of it.

n samples    T frames    H W height and width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa.contracts import Batch
from hjepa.errors import Mistake, listed, nearest

FAR, FAR_SHARE = 3.0, 0.05
"""Fl counts pixels that miss by more than both: so many pixels, and that share of the true flow (KITTI, Menze, Geiger 2015)."""


@dataclass(frozen=True)
class Truth:
    """What really moves where."""

    flow: Tensor
    """(n, T-1, 2, H, W) in pixels."""
    known: Tensor
    """(n, T-1, H, W) bool: where it is known. Nothing else is scored."""
    occluded: Tensor | None
    """(n, T-1, H, W) bool, where the source says it."""

    def regions(self, speeds: Sequence[float], distances: Sequence[float]) -> dict[str, Tensor]:
        """Where errors are averaged, by the end of a score's name; what has no pixel is left out."""
        parts = {"": torch.ones_like(self.known)}
        if self.occluded is not None:
            parts |= {"_visible": ~self.occluded, "_occluded": self.occluded}
        parts |= _bins("speed", self.flow.norm(dim=2), speeds)
        if self.occluded is not None and distances:
            away = distance(self.occluded).masked_fill(self.occluded, -1)
            parts |= _bins("from_occlusion", away, distances)
        return {name: where & self.known for name, where in parts.items() if (where & self.known).any()}


def truth(batch: Batch) -> Truth:
    """Of a batch with `flow`; Mistake where it has none."""
    if "flow" not in batch:
        raise Mistake(
            f"the batch has no 'flow' to compare with{nearest('flow', batch)}; it has {listed(sorted(batch))}. "
            "A source that knows it may have to be told to give it (`flow: true`)"
        )
    flow = batch["flow"].float()
    known = batch.get("known", torch.ones_like(flow[:, :, 0], dtype=torch.bool))
    return Truth(flow, known, batch.get("occluded"))


def errors(flow: Tensor, true: Tensor) -> Tensor:
    """End-point errors: flow and true flow (..., 2, H, W) -> (..., H, W) in pixels."""
    return (flow - true).norm(dim=-3)


def fl(error: Tensor, true: Tensor) -> Tensor:
    """(..., H, W) bool: which pixels are counted as wrong, of errors (..., H, W) and true flow (..., 2, H, W)."""
    return (error > FAR) & (error > FAR_SHARE * true.norm(dim=-3))


def scores(flow: Tensor, true: Truth, regions: Mapping[str, Tensor]) -> dict[str, float]:
    """`epe` of every region, in pixels, and `fl_all` of all of them, in percent."""
    error = errors(flow, true.flow)
    found = {f"epe{name}": float(error[where].double().mean()) for name, where in regions.items()}
    return found | {"fl_all": 100 * float(fl(error, true.flow)[true.known].double().mean())}


def distance(occluded: Tensor) -> Tensor:
    """(n, T-1, H, W) bool -> float32: how many pixels away the next occluded pixel of the same frame is; infinite without one."""
    from scipy.ndimage import distance_transform_edt

    frames = occluded.flatten(0, 1)
    # Frames are laid out so far from one another that the next pixel is always one of the same frame, if there is any.
    apart = 4.0 * (frames.shape[1] + frames.shape[2])
    away = torch.from_numpy(distance_transform_edt(~frames.numpy(), sampling=(apart, 1.0, 1.0))).float()
    return away.masked_fill(~frames.flatten(1).any(dim=1)[:, None, None], torch.inf).view_as(occluded)


def _bins(name: str, values: Tensor, bounds: Sequence[float]) -> dict[str, Tensor]:
    """`_NAME_below_A`, `_NAME_A_to_B`, ..., `_NAME_above_Z` of values that are not negative; nothing without bounds."""
    if not bounds:
        return {}
    words = [f"{bound:g}".replace(".", "p") for bound in bounds]
    inner = zip(zip(words, bounds, strict=True), zip(words[1:], bounds[1:], strict=True), strict=False)
    parts = {f"_{name}_below_{words[0]}": (values >= 0) & (values < bounds[0])}
    parts |= {f"_{name}_{a}_to_{b}": (values >= low) & (values < high) for (a, low), (b, high) in inner}
    return parts | {f"_{name}_above_{words[-1]}": values >= bounds[-1]}
