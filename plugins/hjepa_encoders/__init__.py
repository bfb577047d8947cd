"""Encoders: from what a level reads to its features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    components.add("encoder", "conv", "hjepa_encoders.conv:Conv")
    components.add("encoder", "identity", "hjepa_encoders.identity:Identity")
    components.add("encoder", "impala", "hjepa_encoders.impala:Impala")
    components.add("encoder", "latent_mlp", "hjepa_encoders.latent_mlp:LatentMLP")
    components.add("encoder", "patch_mlp", "hjepa_encoders.patch_mlp:PatchMLP")
    components.add("encoder", "pyramid", "hjepa_encoders.pyramid:Pyramid")
    components.add("encoder", "vit", "hjepa_encoders.vit:ViT")
