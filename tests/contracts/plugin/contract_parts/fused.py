"""Several streams -> one token a step: an encoder for each, and a layer that mixes what they give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hjepa.contracts import Build, Count, Encoder, Features, Spec, States
from hjepa.nn import linear


class Fused(nn.Module):
    """encoders: one for each stream, in the order of `reads`; width: of the token."""

    def __init__(self, spec: Spec, *, encoders: Sequence[Build[Encoder]], width: Count = 8) -> None:
        super().__init__()
        if len(encoders) != len(spec.parts):
            raise ValueError(f"there are {len(encoders)} encoders for {len(spec.parts)} streams")
        self.encoders = nn.ModuleList(encoder(part) for encoder, part in zip(encoders, spec.parts, strict=True))
        self.mix = linear(sum(encoder.spec.width for encoder in self.encoders), width)
        self.spec = spec.giving(width)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        given = [encoder(part).tokens.mean(dim=2) for encoder, part in zip(self.encoders, below.parts, strict=True)]
        return Features(self.mix(torch.cat(given, dim=-1))[:, :, None])
