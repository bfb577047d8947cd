"""Optical flow that a level predicts, against what is true, against no motion at all, and against methods that learn nothing.

End-point errors as in Baker et al. 2011 (Middlebury); Fl as KITTI has it (Menze, Geiger 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hjepa.contracts import Batch, Observer, Positive
from hjepa.errors import Mistake, listed
from hjepa.nn.warping import upsampled
from hjepa_motion.classical import Method, estimated
from hjepa_motion.endpoints import Truth, scores, truth
from hjepa_motion.panels import SHOWN, paint


class Flow:
    """Reads `flow` from the predictions of a level, and the `flow` of its batches.

    Options:
        level: the level. It says `flow` (B,T-1,2,H,W), from each frame to the next, in pixels of the frames; it may say `flow_0`,
            `flow_1` and so on, coarse to fine, each in pixels of a map of its own size, and `occluded` (B,T-1,H,W).
        against: other levels that say `flow` of the same frames.
        classical: methods of OpenCV to be measured beside it, `dis` and `farneback`; they need `pip install 'hjepa[flow]'`.
        speeds: bounds between the ranges of true speed, in pixels a frame, that have errors of their own; rising.
        distances: bounds between the ranges of distance to the next occluded pixel, in pixels, that have; rising.

    Scores, over all pixels of all test samples where the batch says that flow is `known` (everywhere, where it says nothing):
    `epe`, the mean end-point error in pixels; `epe_visible` and `epe_occluded`, where the batch says which pixels are `occluded`;
    `epe_speed_below_1`, `epe_speed_1_to_4`, ..., and `epe_from_occlusion_below_2`, ..., of visible pixels; `fl_all`, the percentage of
    pixels that miss by more than 3 pixels and 5 % of the true flow; `ratio`, `epe` over that of zero flow. What no pixel belongs to
    has no score. `zero_epe`, `zero_epe_visible`, `zero_epe_occluded` and `zero_fl_all` are those of no motion at all, `dis_...` those
    of a method, `LABEL_...` those of another level. `scale_0_epe`, `scale_1_epe`, ...: were the flow of that scale, enlarged to the
    frames, the last.
    """

    def __init__(
        self,
        *,
        level: str,
        against: Sequence[str] = (),
        classical: Sequence[Method] = (),
        speeds: Sequence[Positive] = (1.0, 4.0),
        distances: Sequence[Positive] = (2.0, 8.0),
    ) -> None:
        for name, bounds in (("speeds", speeds), ("distances", distances)):
            if list(bounds) != sorted(set(bounds)):
                raise ValueError(f"{name} {list(bounds)} must rise")
        self.level, self.against, self.classical = level, tuple(against), tuple(classical)
        self.speeds, self.distances = tuple(speeds), tuple(distances)

    def measure(self, observer: Observer) -> dict[str, float]:
        batch = observer.observe(self.level, "test").batch
        true = truth(batch)
        regions, whole = true.regions(self.speeds, self.distances), true.regions((), ())
        zero = torch.zeros_like(true.flow)
        said = self._said(observer, self.level, true)
        found = scores(said["flow"], true, regions)
        for label, flow in {"zero": zero, **self._beside(observer, batch, true)}.items():
            found |= {f"{label}_{name}": value for name, value in scores(flow, true, whole).items()}
        for number, flow in enumerate(scales(said)):
            found[f"scale_{number}_epe"] = scores(enlarged(flow, true), true, {"": true.known})["epe"]
        still = found["zero_epe"]
        return found | ({"ratio": found["epe"] / still} if still else {})

    def draw(self, observer: Observer, figure: Any) -> None:
        """Frames, true and predicted flow, what methods say, errors; the next frame warped back, occlusion, the flow of every scale."""
        batch = observer.observe(self.level, "test").batch
        few = {name: values[:SHOWN] for name, values in batch.items()}
        true = truth(few)
        said = {name: values[:SHOWN] for name, values in self._said(observer, self.level, truth(batch)).items()}
        figure.suptitle(f"flow of {self.level}, on test samples", x=0.04, ha="left", fontsize=11)
        others: dict[str, Tensor] = {method: estimated(method, few["frames"]) for method in self.classical}
        paint(figure, few["frames"], true, said["flow"], said.get("occluded"), others, scales(said))

    def _beside(self, observer: Observer, batch: Batch, true: Truth) -> dict[str, Tensor]:
        levels = {label: self._said(observer, label, true)["flow"] for label in self.against}
        return levels | {method: estimated(method, batch["frames"]) for method in self.classical}

    def _said(self, observer: Observer, level: str, true: Truth) -> dict[str, Tensor]:
        """What a level predicts of the test samples; Mistake where it is no flow of these frames."""
        said = observer.predictions(level, "test")
        if "flow" not in said:
            raise Mistake(f"level {level!r} predicts no 'flow', but {listed(said)}")
        if said["flow"].shape != true.flow.shape:
            shapes = " x ".join(map(str, said["flow"].shape)), " x ".join(map(str, true.flow.shape))
            raise Mistake(f"level {level!r} predicts flow of {shapes[0]} numbers, and what is true has {shapes[1]}")
        return {name: values.float() if values.is_floating_point() else values for name, values in said.items()}


def scales(said: dict[str, Tensor]) -> list[Tensor]:
    """`flow_0`, `flow_1`, ... as far as they go: (n, T-1, 2, h, w) each."""
    found: list[Tensor] = []
    while (flow := said.get(f"flow_{len(found)}")) is not None:
        found.append(flow)
    return found


def enlarged(flow: Tensor, true: Truth) -> Tensor:
    """(n, T-1, 2, h, w) -> the flow of the frames that it amounts to, (n, T-1, 2, H, W)."""
    height, width = true.flow.shape[-2:]
    return upsampled(flow.flatten(0, 1), (height, width)).view_as(true.flow)
