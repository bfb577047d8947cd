"""Images -> maps of several sizes, finest first, and the mean of the coarsest as a token: ConvNeXt with its stem in two steps.

The blocks are those of ConvNeXt (Liu et al. 2022, arXiv:2201.03545): a depthwise convolution that looks around, and a perceptron
for each place. Its stem of stride 4 is split into two of stride 2, so that there is a map of every power of two (MC-JEPA,
arXiv:2307.12698). Whatever halves a map looks at squares of 2 x 2: the centre of a pixel stays that of the four below it. No norm
comes after the last block of a stage, so that states that shrink towards a point are seen to shrink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hjepa.contracts import Count, Features, Spec, States, Whole

Size = Literal["pico", "tiny", "small", "base"]


FLAT = 0.03**2
"""The variance of brightness, of 1, that texture is told from noise by."""


class Shape(NamedTuple):
    """Channels and blocks of the stages, finest first."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]


SIZES: dict[Size, Shape] = {
    "pico": Shape((16, 24, 32, 48, 64), (1, 1, 1, 1, 1)),
    "tiny": Shape((48, 96, 192, 384, 768), (0, 3, 3, 9, 3)),
    "small": Shape((48, 96, 192, 384, 768), (0, 3, 3, 27, 3)),
    "base": Shape((64, 128, 256, 512, 1024), (0, 3, 3, 27, 3)),
}


class Pyramid(nn.Module):
    """A map at strides 2, 4, 8 and so on, one for each stage.

    size: `pico` (for CPUs: 16 to 64 channels, a block a stage), or `tiny`, `small`, `base` of ConvNeXt, strides 4 to 32, with the
    half of their stem as stride 2; widths: channels of each stage instead of those of the size, so many stages there are; depths:
    blocks of each stage, likewise; kernel: side of the square that a block looks at; the image must divide by the last stride.
    pixel_mean, pixel_std: of all pixels, which are normed by them. contrast: side of the square around each pixel by whose mean and
        standard deviation it is normed then, so that faint texture counts as much as strong (Jarrett, Kavukcuoglu, Ranzato, LeCun
        2009); 0 leaves pixels as they are.
    The layers that can be asked for are `stage1`, `stage2`, ..., with one token for each place of the stage's map.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        size: Size = "pico",
        widths: tuple[Count, ...] = (),
        depths: tuple[Whole, ...] = (),
        kernel: Count = 7,
        pixel_mean: float = 0.0,
        pixel_std: float = 1.0,
        contrast: Whole = 0,
    ) -> None:
        super().__init__()
        if not spec.maps:
            raise ValueError("pyramid reads images, and what it is given has no maps; latent_mlp reads tokens")
        widths, depths = widths or SIZES[size].widths, depths or SIZES[size].depths
        if len(widths) != len(depths):
            raise ValueError(f"{len(widths)} widths and {len(depths)} depths: write one of each for a stage")
        _has_middle(kernel=kernel, contrast=contrast or 1)
        channels, height, breadth = spec.maps[0]
        _divides((height, breadth), len(widths))
        inputs = (channels, *widths[:-1])
        self.pixels, self.contrast = (pixel_mean, pixel_std), contrast
        self.stages = nn.ModuleDict({
            f"stage{number}": Stage(before, width, depth, kernel, first=number == 1)
            for number, (before, width, depth) in enumerate(zip(inputs, widths, depths, strict=True), start=1)
        })  # fmt: skip
        _without_bias(self)
        maps = tuple((width, height >> stage, breadth >> stage) for stage, width in enumerate(widths, start=1))
        self.spec = spec.giving(widths[-1], maps=maps)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        """below.maps[0] (B, T, C, H, W) -> maps (B, T, C, H, W) at strides 2, 4, ..., and the mean of the last (B, T, 1, D).

        ValueError for a layer that does not exist.
        """
        if unknown := [layer for layer in layers if layer not in self.stages]:
            raise ValueError(f"pyramid has no layer {', '.join(unknown)}; it has {', '.join(self.stages)}")
        frames = (below.maps[0] - self.pixels[0]) / self.pixels[1]
        images = frames.flatten(0, 1)
        x = local_contrast(images, self.contrast) if self.contrast else images
        x = x.contiguous(memory_format=torch.channels_last)
        maps = {}
        for name, stage in self.stages.items():
            x = stage(x)
            maps[name] = x.view(*frames.shape[:2], *x.shape[1:])
        asked = {name: rearrange(maps[name], "b t c h w -> b t (h w) c") for name in layers}
        return Features(x.mean((2, 3)).view(*frames.shape[:2], 1, -1), tuple(maps.values()), asked)


class Stage(nn.Module):
    """(R, inputs, H, W) -> (R, width, H/2, W/2): halved, then `depth` blocks. Pixels as they come are not normed."""

    def __init__(self, inputs: int, width: int, depth: int, kernel: int, first: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if first else ChannelNorm(inputs)
        self.halve = nn.Conv2d(inputs, width, kernel_size=2, stride=2)
        self.blocks = nn.Sequential(*(Block(width, kernel) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.halve(self.norm(x)))
        return out


class Block(nn.Module):
    """(R, C, H, W) -> the same: around each place, then within it, added to what was there.

    The branch begins at a fraction of its size (`nn.Parameter` scale), as in the paper; 0.1, for the few blocks of small stages.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, kernel, padding=kernel // 2, padding_mode="replicate", groups=width)
        self.norm = nn.LayerNorm(width)
        self.within = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm(self.around(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.within(seen)).permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each place of (R, C, H, W), free of copies where channels lie last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def _without_bias(encoder: nn.Module) -> None:
    """Biases begin at 0, as in the paper: random ones are in all states alike, ten times as large as what tells them apart."""
    for part in encoder.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)) and part.bias is not None:
            nn.init.zeros_(part.bias)


def local_contrast(images: Tensor, side: int) -> Tensor:
    """(R, C, H, W): each pixel less the mean of the square around it, over the standard deviation of its brightness there.

    Beyond its edge an image goes on as it ends. `FLAT` is added to the variance: what varies less than that, noise, stays small.
    """

    def around(x: Tensor) -> Tensor:
        padded = F.pad(x, (side // 2,) * 4, mode="replicate")
        return F.avg_pool2d(F.avg_pool2d(padded, (side, 1), stride=1), (1, side), stride=1)

    grey = images.mean(1, keepdim=True)
    grey = grey - grey.mean((2, 3), keepdim=True)  # the difference of two large numbers would be all rounding
    variance = (around(grey.square()) - around(grey).square()).clamp(min=0)
    return (images - around(images)) * (variance + FLAT).rsqrt()


def _has_middle(**sides: int) -> None:
    """ValueError where a square has none."""
    for name, side in sides.items():
        if not side % 2:
            raise ValueError(f"{name} is {side}; it must be odd, to have a middle")


def _divides(sides: tuple[int, int], stages: int) -> None:
    """ValueError, with the sum, where an image cannot be halved so often."""
    stride = 1 << stages
    if rest := [side for side in dict.fromkeys(sides) if side % stride]:
        sums = ", ".join(f"{side} = {side // stride} * {stride} + {side % stride}" for side in rest)
        raise ValueError(f"{sides[0]} x {sides[1]} pixels cannot be halved {stages} times (stride {stride}): {sums}")
