"""Images -> one token a step, by a few convolutions of stride 2.

The last map is flattened, not averaged, so that the token can say where things are; and no norm comes after it, so that states
that shrink towards a point are seen to shrink. Group norm (Wu & He 2018) looks at one image alone: no sample sees another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from einops import rearrange
from torch import nn

from hjepa.contracts import Count, Features, Spec, States, Whole
from hjepa.nn import linear
from hjepa.nn.batch_norm import BatchNorm
from hjepa_encoders.streams import Streams


class Conv(nn.Module):
    """A convolutional encoder of the finest map that it reads.

    width: of the token; base: channels of the first stage, doubled by each one after; stages: how often the image is halved;
    smooth: halve by averaging what every place gives, not by skipping places: small shifts then change little (Zhang 2019,
    arXiv:1904.11486); pool: average the last map instead of flattening it, where only what is there matters and not where;
    head: width of a layer with batch norm before the token, 0 for none. What all samples have in common is taken out there, which
    targets without gradient need to learn anything (SimSiam, arXiv:2011.10566, table 3); while training, samples then see one another.
    Of several streams one has maps, and the tokens of the others are laid beside its last map.
    The layers that can be asked for are `stage1`, `stage2`, ..., with one token for each place of the stage's map.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Count = 64,
        base: Count = 16,
        stages: Count = 3,
        smooth: bool = False,
        pool: bool = False,
        head: Whole = 0,
    ) -> None:
        super().__init__()
        self.streams = Streams("conv", spec)
        channels, height, breadth = self.streams.shape
        made = {}
        for stage in range(stages):
            made[f"stage{stage + 1}"] = _stage(channels, base << stage, smooth)
            channels, height, breadth = base << stage, math.ceil(height / 2), math.ceil(breadth / 2)
        self.stages = nn.ModuleDict(made)
        self.pool = pool
        flat = channels if pool else channels * height * breadth
        self.head = nn.Sequential(self.streams.linear(flat, head), BatchNorm(head), nn.GELU()) if head else nn.Identity()
        self.out = linear(head, width) if head else self.streams.linear(flat, width)
        self.spec = spec.giving(width)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        """below.maps[0] (B, T, C, H, W), or that of a part -> tokens (B, T, 1, D). ValueError for a layer that does not exist."""
        if unknown := [layer for layer in layers if layer not in self.stages]:
            raise ValueError(f"conv has no layer {', '.join(unknown)}; it has {', '.join(self.stages)}")
        frames = self.streams.maps(below)
        batch, steps = frames.shape[:2]
        x = frames.flatten(0, 1)
        asked = {}
        for name, stage in self.stages.items():
            x = stage(x)
            if name in layers:
                asked[name] = rearrange(x, "(b t) c h w -> b t (h w) c", b=batch)
        x = x.mean((2, 3)) if self.pool else x.flatten(1)
        x = self.streams.joined(x.view(batch, steps, 1, -1), below)
        return Features(self.out(self.head(x)), layers=asked)


def _stage(inputs: int, outputs: int, smooth: bool) -> nn.Sequential:
    halved = [nn.AvgPool2d(2, ceil_mode=True)] if smooth else []
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, stride=1 if smooth else 2, padding=1, bias=False),
        nn.GroupNorm(math.gcd(outputs, 8), outputs),
        nn.GELU(),
        *halved,
    )
