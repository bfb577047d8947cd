"""Levels that fill in what is masked, predictors of masked tokens, and maskings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    components.add("level", "masked", "hjepa_masked.masked:Masked")
    components.add("predictor", "mask_tokens", "hjepa_masked.mask_tokens:MaskTokens")
    components.add("masking", "multiblock", "hjepa_masked.multiblock:Multiblock")
    components.add("masking", "multiblock3d", "hjepa_masked.multiblock3d:Multiblock3d")
    components.add("masking", "tube", "hjepa_masked.tube:Tube")
    components.add("masking", "random", "hjepa_masked.random:Random")
    components.add("masking", "causal", "hjepa_masked.causal:Causal")
