"""An exact share of the tokens is masked, any of them alike (MAE, arXiv:2111.06377)."""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import Fraction, Packed, Spec
from hjepa.randomness import Key
from hjepa_masked.packs import packs
from hjepa_masked.shares import drawn_share, share_of


class Random:
    """One family, `random`: what is masked is its target, all else its context.

    ratio: share of a row's tokens that are masked, rounded to whole tokens; one is always masked, and one is always left.
    """

    families = ("random",)

    def __init__(self, spec: Spec, *, ratio: Fraction = 0.75) -> None:
        self.grid, self.tokens = spec.grid, spec.tokens
        self.ratio = share_of(ratio, spec.tokens, "tokens")

    def sample(self, key: Key, valid: Tensor | None = None) -> dict[str, list[Packed]]:
        """`[context, target]`, which are together all tokens of a row; one key a row (R,), valid (R, N)."""
        there = valid
        if there is None:
            there = torch.ones(len(key.word), self.tokens, dtype=torch.bool, device=key.word.device)
        masked = drawn_share(key, self.ratio, there)
        return {"random": packs(torch.stack((there & ~masked, masked)), self.grid, "random")}
