"""How far a prediction is from its target: energies over the width of each token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    """The energies of hjepa."""
    components.add("energy", "l1", "hjepa_energy.l1:L1")
    components.add("energy", "l2", "hjepa_energy.l2:L2")
    components.add("energy", "smooth_l1", "hjepa_energy.smooth_l1:SmoothL1")
    components.add("energy", "cosine", "hjepa_energy.cosine:Cosine")
