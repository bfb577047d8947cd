"""Images -> one token a step, or one for each place, by the residual network of IMPALA (Espeholt et al. 2018, arXiv:1802.01561).

EB-JEPA (arXiv:2602.03604) plans in Two Rooms with it: one token of 512 numbers, normed. Maxima are pooled, which keeps a dot that
averages would blur. Weights begin such that what passes neither grows nor fades, and branches at 1 / sqrt(their number).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hjepa.contracts import Count, Features, Positive, Spec, States
from hjepa_encoders.streams import Streams

RELU = 2**0.5
"""What weights grow by behind a ReLU, which takes half of the power away (He et al. 2015, arXiv:1502.01852)."""


class Impala(nn.Module):
    """A residual network on the finest map that it reads.

    width: of a token; channels: of each stage, which halves the image and has two residual blocks;
    patch: stride of a convolution before them, on overlapping squares of 2 * patch - 1 pixels; 1 for none. All that follows costs
    patch^2 times less;
    spatial: one token for each place of the last map, in its grid, instead of one for all places together;
    pixel_mean, pixel_std: of each channel, or of all, which are normed by them: where a channel varies little, others drown it;
    norm: a layer norm without parameters on each token. Without it, states that shrink are seen to shrink.
    Of several streams one has maps, and the tokens of the others are laid beside its last map, where `spatial` beside each place.
    The layers that can be asked for are `stage1`, `stage2`, ..., with one token for each place of the stage's map.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Count = 64,
        channels: tuple[Count, ...] = (16, 32, 32),
        patch: Count = 1,
        spatial: bool = False,
        pixel_mean: tuple[float, ...] = (0.0,),
        pixel_std: tuple[Positive, ...] = (1.0,),
        norm: bool = False,
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels is empty; write a number for each stage, as in [16, 32, 32]")
        self.streams = Streams("impala", spec)
        inputs, *sides = self.streams.shape
        self.pixels = self.streams.normed(pixel_mean, pixel_std)
        self.patch = nn.Identity() if patch == 1 else nn.Sequential(_conv(inputs, channels[0], patch, RELU), nn.ReLU())
        before = (inputs if patch == 1 else channels[0], *channels[:-1])
        self.stages = nn.ModuleDict({
            f"stage{number}": Stage(*shape, blocks=2 * len(channels))
            for number, shape in enumerate(zip(before, channels, strict=True), start=1)
        })  # fmt: skip
        for stride in (patch, *(2 for _ in channels)):
            sides = [math.ceil(side / stride) for side in sides]
        self.spatial, self.norm = spatial, norm
        self.out = self.streams.linear(channels[-1] * (1 if spatial else math.prod(sides)), width)
        self.spec = spec.giving(width, tuple(sides) if spatial else ())

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        """below.maps[0] (B, T, C, H, W), or that of a part -> tokens (B, T, N, D), where N is 1 or the places of the last map.

        ValueError for a layer that does not exist.
        """
        if unknown := [layer for layer in layers if layer not in self.stages]:
            raise ValueError(f"impala has no layer {', '.join(unknown)}; it has {', '.join(self.stages)}")
        frames = self.streams.maps(below)
        batch, asked = len(frames), {}
        x = self.pixels(frames.flatten(0, 1))
        x = self.patch(x.contiguous(memory_format=torch.channels_last))
        for name, stage in self.stages.items():
            x = stage(x)
            if name in layers:
                asked[name] = _places(x, batch)
        x = _places(x.relu(), batch)
        tokens = self.out(self.streams.joined(x if self.spatial else x.flatten(2)[:, :, None], below))
        return Features(F.layer_norm(tokens, tokens.shape[-1:]) if self.norm else tokens, layers=asked)


class Stage(nn.Module):
    """(R, inputs, H, W) -> (R, channels, H/2, W/2), rounded up. `blocks`: how many residual blocks the whole network has."""

    def __init__(self, inputs: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.conv = _conv(inputs, channels)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Block(channels, blocks**-0.5) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.pool(self.conv(x)))
        return out


class Block(nn.Module):
    """(R, C, H, W) -> the same: what two convolutions find is added; at the start it is `scale` as large as what it is added to."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.first = _conv(channels, channels, gain=RELU)
        self.second = _conv(channels, channels, gain=RELU * scale)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x.relu()).relu())
        return out


def _conv(inputs: int, outputs: int, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """Of squares of 3 x 3, or as large as it takes to overlap; it gives unit variance for unit variance, times gain^2."""
    side = max(3, 2 * stride - 1)
    conv = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2)
    nn.init.normal_(conv.weight, std=gain * (inputs * side**2) ** -0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _places(x: Tensor, batch: int) -> Tensor:
    """(B*T, C, H, W) -> (B, T, H*W, C)."""
    return rearrange(x, "(b t) c h w -> b t (h w) c", b=batch)
