"""A part of each image or clip, brought to its size (Szegedy et al. 2015, arXiv:1409.4842, section 6).

As a crop is no larger than the image and streams keep their size, pixels are only ever spread, which linear interpolation does
without aliasing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa.contracts import Batch, Fraction, Positive
from hjepa.randomness import Key, uniform
from hjepa_data.streams import pixels


class RandomResizedCrop:
    """The same box for all frames of a clip, and for all streams of a sample.

    Share and ratio are drawn independently: the share evenly, the ratio evenly in its logarithm, within what fits for that share.
    So nothing is drawn twice, small boxes are not drawn more often than large ones, and every place where the box fits is as
    likely as any other.

    Options:
        scale: from which to which share of the image's area a box covers.
        ratio: from which to which ratio of its width to its height, in pixels; where none fits, the nearest that does.
        streams: which keys of the batch are images (B,T,C,H,W). What else a batch says of places (`position`, `flow`) is left as
            it is, and is wrong of a crop.
    """

    def __init__(
        self,
        *,
        scale: tuple[Fraction, Fraction] = (0.3, 1.0),
        ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3),
        streams: Sequence[str] = ("frames",),
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale goes from {scale[0]:g} to {scale[1]:g}; it must rise, from more than 0")
        if ratio[0] > ratio[1]:
            raise ValueError(f"ratio goes from {ratio[0]:g} to {ratio[1]:g}; it must rise")
        self.scale, self.ratio, self.streams = scale, ratio, tuple(streams)

    def __call__(self, batch: Batch, key: Key) -> Batch:
        return batch | {name: cut(x, *self.boxes(key, *x.shape[-2:])) for name, x in pixels(batch, self.streams).items()}

    def boxes(self, key: Key, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Centre and size (B, 2) each, (x, y) in shares of the image."""
        draw = uniform(key, "crop", (4,))
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * draw[:, 0]
        square = width / height
        narrow, wide = (torch.full_like(area, bound).clamp(area * square, square / area).log() for bound in self.ratio)
        ratio = (narrow + (wide - narrow) * draw[:, 1]).exp() / square
        size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)
        return size / 2 + (1 - size) * draw[:, 2:], size


def cut(x: Tensor, centre: Tensor, size: Tensor) -> Tensor:
    """Boxes (B, 2) of x (B, T, C, H, W), brought to (H, W)."""
    to_box = torch.diag_embed(size)
    places = F.affine_grid(
        torch.cat([to_box, (2 * centre - 1)[..., None]], dim=2), [len(x), 1, *x.shape[-2:]], align_corners=False
    )
    whole = F.grid_sample(x.flatten(1, 2), places.to(x.dtype), padding_mode="border", align_corners=False)
    return whole.view_as(x)
