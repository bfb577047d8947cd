"""From the maps of two frames to the flow between them, coarse to fine (PWC-Net, Sun et al. 2018, arXiv:1709.02371)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hjepa.nn.statistics import at_least_float32
from hjepa.nn.warping import cost_volume, upsampled, warped


class Flows(NamedTuple):
    """From one frame to the other."""

    scales: list[Tensor]
    """Coarse to fine, (R, 2, H, W) each, in pixels of its map."""
    frames: Tensor
    """(R, 2, H, W) in pixels of the frames."""


class Estimator(nn.Module):
    """One small network for all scales, each of which adds to the flow of the coarser one.

    channels: of the maps, finest first; width: of all of them as the network sees them, by a 1 x 1 convolution each; radius: of
    the cost volume; hidden: channels of its layers, the last of which are handed on to the finer scale; dropout: of its layers;
    stride: of the finest map, in pixels of the frames.

    The up-sampled flow is cut from the graph, so that each scale answers for what it adds (UFlow, Jonschkowski et al. 2020,
    arXiv:2006.04902); what is handed on beside it is not. Features have length 1 where they are compared.
    """

    def __init__(
        self, channels: Sequence[int], width: int, radius: int, hidden: Sequence[int], dropout: float, stride: int
    ) -> None:
        super().__init__()
        self.radius, self.handed = radius, hidden[-1]
        self.narrow = nn.ModuleList(nn.Conv2d(count, width, kernel_size=1) for count in channels)
        inputs = (2 * radius + 1) ** 2 + 2 * width + 2 + self.handed
        widths = (inputs, *hidden[:-1])
        layers = [_layer(*pair, 3 if n else 1, dropout) for n, pair in enumerate(zip(widths, hidden, strict=True))]
        self.layers = nn.Sequential(*layers)
        self.residual = nn.Conv2d(self.handed, 2, kernel_size=3, padding=1, padding_mode="replicate")
        nn.init.normal_(self.residual.weight, std=1e-3)
        nn.init.zeros_(cast(Tensor, self.residual.bias))
        self.enlarge = Enlarge(self.handed, stride)

    def forward(self, one: Sequence[Tensor], other: Sequence[Tensor], again: int = 0) -> Flows:
        """Maps (R, C, H, W) of both frames, finest first; `again`: how often the finest is gone through once more."""
        coarsest = one[-1]
        flow = at_least_float32(coarsest).new_zeros(len(coarsest), 2, *coarsest.shape[2:])
        handed = flow.new_zeros(len(coarsest), self.handed, *coarsest.shape[2:])
        flows = []
        for narrow, here, there in zip(reversed(self.narrow), reversed(one), reversed(other), strict=True):
            size = here.shape[2], here.shape[3]
            flow, handed = upsampled(flow.detach(), size), F.interpolate(handed, size, mode="bilinear", align_corners=False)
            features = _unit(narrow(here)), _unit(narrow(there))
            for _ in range(1 + again if here is one[0] else 1):
                flow, handed = self._refined(*features, flow, handed)
            flows.append(flow)
        return Flows(flows, self.enlarge(flow, handed))

    def _refined(self, here: Tensor, there: Tensor, flow: Tensor, handed: Tensor) -> tuple[Tensor, Tensor]:
        """One scale: features (R, width, H, W) of both frames, the flow so far, and what the coarser scale handed on."""
        moved = warped(there, flow)
        cost = F.leaky_relu(cost_volume(here, moved, self.radius), 0.1)
        handed = self.layers(torch.cat((cost, here, moved, flow, handed), dim=1))
        return flow + at_least_float32(self.residual(handed)), handed


class Enlarge(nn.Module):
    """Flow of a map -> flow of the frames: of each of their pixels a mean of the nine places around it, weighed as learned.

    So it can change at an edge of the frames that lies within a place of the map (RAFT, Teed, Deng 2020, arXiv:2003.12039, 3.3).
    It begins as bilinear interpolation, nearly.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weights = nn.Conv2d(channels, 9 * stride**2, kernel_size=3, padding=1, padding_mode="replicate")
        nn.init.normal_(self.weights.weight, std=1e-3)
        with torch.no_grad():
            cast(Tensor, self.weights.bias).copy_((_bilinear(stride) + 0.01).log().flatten())

    def forward(self, flow: Tensor, seen: Tensor) -> Tensor:
        """Flow (R, 2, H, W) and what is seen there (R, channels, H, W) -> (R, 2, H stride, W stride), in pixels of that size."""
        rows, _, height, width = flow.shape
        weights = at_least_float32(self.weights(seen)).view(rows, 1, 9, self.stride, self.stride, height, width).softmax(2)
        around = F.unfold(F.pad(flow, (1, 1, 1, 1), mode="replicate"), kernel_size=3).view(rows, 2, 9, 1, 1, height, width)
        full = self.stride * (weights * around).sum(2)
        return rearrange(full, "r xy sy sx h w -> r xy (h sy) (w sx)")


def _bilinear(stride: int) -> Tensor:
    """(9, stride, stride): the weights of 3 x 3 places, row by row, for each pixel of the one in the middle."""
    right = (torch.arange(stride) + 0.5) / stride - 0.5
    along = torch.stack((-right, 1 - right.abs(), right)).clamp(min=0)
    return torch.einsum("py,qx->pqyx", along, along).flatten(0, 1)


def _unit(x: Tensor) -> Tensor:
    """Features (R, C, H, W), less what all places have in common, of length sqrt(C): the mean product of two is a cosine."""
    x = at_least_float32(x)
    return x.shape[1] ** 0.5 * F.normalize(x - x.mean((2, 3), keepdim=True), dim=1, eps=1e-4)


def _layer(inputs: int, outputs: int, kernel: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="replicate"),
        nn.GroupNorm(1, outputs),
        nn.LeakyReLU(0.1),
        *([nn.Dropout2d(dropout)] if dropout else []),
    )
