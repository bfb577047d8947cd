"""Images and clips, mirrored left to right, each with the same probability."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hjepa.contracts import Batch, Fraction
from hjepa.randomness import Key, uniform
from hjepa_data.streams import pixels


class Flip:
    """All streams of a sample, and all frames of a clip, are mirrored together, or none of them is.

    Options:
        probability: that a sample is mirrored.
        streams: which keys of the batch are images (B,T,C,H,W). What else a batch says of places (`position`, `flow`) is left as
            it is, and is wrong of a mirrored sample.
    """

    def __init__(self, *, probability: Fraction = 0.5, streams: Sequence[str] = ("frames",)) -> None:
        self.probability, self.streams = probability, tuple(streams)

    def __call__(self, batch: Batch, key: Key) -> Batch:
        mirrored = (uniform(key, "flip") < self.probability)[:, None, None, None, None]
        return batch | {name: torch.where(mirrored, x.flip(-1), x) for name, x in pixels(batch, self.streams).items()}
