"""Handwritten digits somewhere on a canvas, in one view or in two: the smallest images on which it shows whether states were learned.

Centred scans prove nothing, as their raw pixels are told apart already; displaced ones hide what they are from a linear reader.
Two views of one scan differ in place, scale and noise, and have only the digit in common (translated digits: Jaderberg et al. 2015;
two views: Chen et al. 2020, arXiv:2002.05709). Sub-pixel places are rendered, not rounded.

    B batch    V views    S side of the canvas
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hjepa.contracts import Batch, Count, Fraction, NonNegative, Spec
from hjepa.nn.splits import Drawn
from hjepa.randomness import Key, integers, normal, uniform
from hjepa_data.scans import resampled, scans

STREAMS = ("view", "other_view")


class Digits(Drawn):
    """One scan a sample, each view of it placed, scaled and made noisy for itself.

    Options:
        views: 1 gives the stream `view`, 2 the stream `other_view` as well.
        size: S, side of the canvas in pixels.
        digit_size: side of a digit's box on the canvas in pixels, before it is scaled.
        shift: how far a view may lie from the sample's own place in pixels along each axis; by default anywhere on the canvas,
            so that one view says nothing of the other's place.
        scale: a box is scaled by a factor between 1 - scale and 1 + scale.
        noise: standard deviation of the normal noise added to each pixel.
        samples: how many samples an epoch of `train` has.
        held_out: how many samples `valid` has, and `test`.

    A batch holds
        view, other_view (B,1,1,S,S): ink 1 on background 0; noise may leave [0, 1].
        label (B,) int64: which digit it is.
        position (B,2): (x, y) of the centre in `view`, -1 and 1 where a box of `digit_size` touches the walls: one unit is
            `(size - digit_size) / 2` pixels.

    Scans are dealt out to the splits once and for all, whatever the seed: no scan is in two splits.
    A sample is a pure function of the seed, the split and its id.
    """

    def __init__(
        self,
        seed: int,
        *,
        views: Literal[1, 2] = 2,
        size: Count = 16,
        digit_size: Count = 8,
        shift: NonNegative | None = None,
        scale: Fraction = 0.2,
        noise: NonNegative = 0.05,
        samples: Count = 100_000,
        held_out: Count = 1000,
    ) -> None:
        if digit_size >= size:
            raise ValueError(
                f"digit_size is {digit_size}, but a digit must be smaller than the canvas (size is {size}) to be displaced"
            )
        if scale == 1 or digit_size * (1 + scale) > size:
            raise ValueError(
                f"scale is {scale:g}: boxes of {digit_size * (1 - scale):g} to {digit_size * (1 + scale):g} pixels must be there, "
                f"and fit on a canvas of {size}"
            )
        self.seed, self.size, self.digit_size, self.shift = seed, size, digit_size, shift
        self.scale, self.noise = scale, noise
        super().__init__(samples, held_out)
        self.streams = {stream: Spec(maps=((1, size, size),)) for stream in STREAMS[:views]}

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        key = Key.of(self.seed, "digits", self.name, device=device).fold(ids)
        images, labels = scans(self.name, device)
        chosen = integers(key, "scan", 0, len(labels))
        side = self.digit_size * (1 + self.scale * (2 * uniform(key, "scale", (len(self.streams), 1)).double() - 1))
        corner = self._corners(key, self.size - side)
        shown = self._shown(images[chosen], corner, side)
        if self.noise:
            shown = shown + self.noise * normal(key, "noise", tuple(shown.shape[1:]))
        centre = (corner + side / 2)[:, 0]
        views = {stream: shown[:, place, None, None] for place, stream in enumerate(self.streams)}
        position = (2 * centre - self.size) / (self.size - self.digit_size)
        return {**views, "label": labels[chosen], "position": position.float()}

    def _corners(self, key: Key, reach: Tensor) -> Tensor:
        """(B,V,2), float64: the upper left corners, evenly spread over what `shift` and the walls leave of `reach` (B,V,1)."""
        place = uniform(key, "place", (len(self.streams), 2)).double()
        if self.shift is None:
            return reach * place
        own = reach * uniform(key, "own place", (1, 2)).double()
        low, high = (own - self.shift).clamp(min=0), (own + self.shift).minimum(reach)
        return low + (high - low) * place

    def _shown(self, images: Tensor, corner: Tensor, side: Tensor) -> Tensor:
        """Images (B,N,N) in boxes of `side` (B,V,1) with their corners at (B,V,2) -> (B,V,S,S), 0 outside of the boxes."""
        last = images.shape[-1] - 1
        pixels = torch.arange(self.size, dtype=torch.float64, device=corner.device) + 0.5
        at = (pixels - corner[..., None]) * (last / side)[..., None]
        at = at.clamp(0, last).float()
        return resampled(images, at[:, :, 0], at[:, :, 1])
