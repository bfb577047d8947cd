"""Probes: what can be read from frozen states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    """Every probe of the family."""
    components.add("probe", "regression", "hjepa_probes.regression:Regression")
    components.add("probe", "linear", "hjepa_probes.linear:Linear")
    components.add("probe", "knn", "hjepa_probes.knn:Knn")
    components.add("probe", "attentive", "hjepa_probes.attentive:Attentive")
    components.add("probe", "futures", "hjepa_probes.futures:Futures")
