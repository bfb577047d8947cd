"""The 1,797 scans of handwritten digits that come with scikit-learn (Alpaydin, Kaynak 1998), dealt out to the splits once and for all.

R images    N nodes along an axis of an image that is resampled    S side of what it is resampled to
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hjepa.nn.splits import SPLITS
from hjepa.randomness import Key, permuted

SHARES = (0.7, 0.8, 1.0)
"""Where the part of the scans that belongs to train, valid and test ends."""


@cache
def scans(split: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The split's images (R,10,10) in [0,1], each with a rim of zeros, and their labels (R,)."""
    from sklearn.datasets import load_digits

    source = load_digits()
    count = len(source.target)
    ends = [0, *(round(count * share) for share in SHARES)]
    place = SPLITS.index(split)
    rows = permuted(torch.arange(ends[place], ends[place + 1]), count, Key.of("moving_digits", "scans"))
    images = torch.nn.functional.pad(torch.from_numpy(source.images).float() / 16, (1, 1, 1, 1))
    return images[rows].to(device), torch.from_numpy(source.target)[rows].long().to(device)


def resampled(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Images (R,N,N) at columns x and rows y, (R,T,S) each in [0, N-1] -> (R,T,S,S), bilinear.

    One axis after the other, by copying whole rows: no matrix product, whose bits could depend on the batch.
    """
    count, steps, size = x.shape
    columns = _between(images.mT.contiguous(), x.flatten(1))
    columns = columns.reshape(count, steps, size, images.shape[-1]).mT.flatten(0, 1)
    return _between(columns, y.flatten(0, 1)).reshape(count, steps, size, size)


def _between(rows: Tensor, at: Tensor) -> Tensor:
    """Rows (R,N,W) at places (R,P) in [0, N-1] -> (R,P,W), linear between neighbours."""
    count, nodes = rows.shape[:2]
    low = at.floor().clamp(max=nodes - 2)
    index = low.long() + nodes * torch.arange(count, device=at.device)[:, None]
    flat, upper = rows.flatten(0, 1), (at - low)[..., None]
    embedding = torch.nn.functional.embedding
    return embedding(index, flat).mul_(1 - upper).add_(embedding(index + 1, flat).mul_(upper))
