"""Motion: the flow from one frame to the next, learned without labels, and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    """The components of this family."""
    components.add("level", "motion", "hjepa_motion.motion:Motion")
    components.add("probe", "flow", "hjepa_motion.flow:Flow")
