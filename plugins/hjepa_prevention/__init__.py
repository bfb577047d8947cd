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
    components.add("prevention", "barlow", "hjepa_prevention.barlow:Barlow")
    components.add("prevention", "wmse", "hjepa_prevention.wmse:Wmse")
    components.add("prevention", "infonce", "hjepa_prevention.infonce:Infonce")
    components.add("prevention", "hinge", "hjepa_prevention.hinge:Hinge")
    components.add("prevention", "dino", "hjepa_prevention.dino:Dino")
    components.add("prevention", "inverse_dynamics", "hjepa_prevention.inverse_dynamics:InverseDynamics")
    components.add("prevention", "temporal_similarity", "hjepa_prevention.temporal_similarity:TemporalSimilarity")
