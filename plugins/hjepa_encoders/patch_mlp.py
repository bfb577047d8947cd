"""Images -> one token for each patch of them, by a perceptron that every patch goes through by itself.

The least that an encoder can do where a rule that holds everywhere shall be learned (as a wall that stops a dot): what a token says
comes from its own surroundings alone, so that what is near stays near, and `conv` predicts it from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import nn

from hjepa.contracts import Count, Features, Positive, Spec, States
from hjepa_encoders.streams import Streams


class PatchMLP(nn.Module):
    """A perceptron on overlapping squares of the finest map that it reads, or of tokens that lie in a plane.

    width: of a token; patch: pixels from the middle of a square to that of the next, whose sides are 2 * patch - 1;
    hidden: width of the perceptron's layers; depth: how many layers come before the last one;
    pixel_mean, pixel_std: of each channel, or of all, which are normed by them: where a channel varies little, others drown it;
    norm: a layer norm without parameters on each token. Without it, states that shrink are seen to shrink.
    Of several streams one has maps, and the tokens of the others are laid beside each place.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Count = 32,
        patch: Count = 5,
        hidden: Count = 64,
        depth: Count = 1,
        pixel_mean: tuple[float, ...] = (0.0,),
        pixel_std: tuple[Positive, ...] = (1.0,),
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.streams = Streams("patch_mlp", spec)
        channels, height, breadth = self.streams.shape
        self.pixels = self.streams.normed(pixel_mean, pixel_std)
        self.norm = norm
        self.look = nn.Conv2d(channels, hidden, 2 * patch - 1, patch, padding=patch - 1)
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth - 1))
        self.out = self.streams.linear(hidden, width)
        self.spec = spec.giving(width, (math.ceil(height / patch), math.ceil(breadth / patch)))

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        """below.maps[0] (B, T, C, H, W), or that of a part -> tokens (B, T, N, D) of N places. ValueError if layers are asked for."""
        if layers:
            raise ValueError(f"patch_mlp has no layer {', '.join(layers)}: there is nothing between its pixels and its tokens")
        frames = self.streams.maps(below)
        x = self.pixels(frames.flatten(0, 1))
        x = F.gelu(self.look(x))
        x = rearrange(x, "(b t) c h w -> b t (h w) c", b=len(frames))
        for layer in self.layers:
            x = F.gelu(layer(x))
        tokens = self.out(self.streams.joined(x, below))
        return Features(F.layer_norm(tokens, tokens.shape[-1:]) if self.norm else tokens)
