"""All tokens of a step -> their mean: what a level above a token level reads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hjepa.contracts import Count, Features, Spec, States
from hjepa.nn import linear


class Pool(nn.Module):
    """width: of the token that is left."""

    def __init__(self, spec: Spec, *, width: Count = 8) -> None:
        super().__init__()
        self.out = linear(spec.width, width)
        self.spec = spec.giving(width)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        return Features(self.out(below.tokens.mean(dim=2, keepdim=True)))
