"""What keeps a level from collapsing: by what predictions are compared with, or by a loss on the embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    """The preventions of hjepa."""
    components.add("prevention", "ema", "hjepa_prevention.ema:Ema")
    components.add("prevention", "stop_gradient", "hjepa_prevention.stop_gradient:StopGradient")
    components.add("prevention", "vicreg", "hjepa_prevention.vicreg:Vicreg")
    components.add("prevention", "sigreg", "hjepa_prevention.sigreg:Sigreg")
