"""Images -> maps of several sizes, finest first, and the mean of the coarsest as a token (MC-JEPA's shared encoder)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hjepa.contracts import Count, Features, Spec, States


class Pyramid(nn.Module):
    """width: channels of every map; depth: how many maps, each of half the size of the one before."""

    def __init__(self, spec: Spec, *, width: Count = 8, depth: Count = 2) -> None:
        super().__init__()
        channels, height, breadth = spec.maps[0]
        inputs = [channels, *[width] * (depth - 1)]
        self.stages = nn.ModuleList(nn.Conv2d(count, width, kernel_size=2, stride=2) for count in inputs)
        maps = tuple((width, height >> stage, breadth >> stage) for stage in range(1, depth + 1))
        self.spec = spec.giving(width, maps=maps)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        x, maps = below.maps[0].flatten(0, 1), []
        for stage in self.stages:
            x = stage(x).tanh()
            maps.append(x.unflatten(0, below.time.shape))
        return Features(maps[-1].mean(dim=(3, 4))[:, :, None], tuple(maps))
