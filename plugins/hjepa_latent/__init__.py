"""What a prediction cannot know: latent variables, and what limits how much they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    components.add("latent", "continuous", "hjepa_latent.continuous:Continuous")
    components.add("latent", "sparse", "hjepa_latent.sparse:Sparse")
    components.add("latent", "noisy", "hjepa_latent.noisy:Noisy")
    components.add("latent", "discrete", "hjepa_latent.discrete:Discrete")
    components.add("latent", "vq", "hjepa_latent.vq:VQ")
    components.add("latent", "gaussian", "hjepa_latent.gaussian:Gaussian")
