"""Worlds to act in, what is done there, and how it is planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    """Worlds of rooms, the walks that are learned from, and planners."""
    components.add("environment", "two_rooms", "hjepa_control.two_rooms:TwoRooms")
    components.add("environment", "serial_rooms", "hjepa_control.serial_rooms:SerialRooms")
    components.add("environment", "four_rooms", "hjepa_control.four_rooms:FourRooms")
    components.add("environment", "gymnasium", "hjepa_control.gymnasium_world:GymnasiumWorld")
    components.add("environment", "random_goals", "hjepa_control.random_goals:RandomGoals")
    components.add("dataset", "trajectories", "hjepa_control.trajectories:Trajectories")
    components.add("dataset", "recorded", "hjepa_control.recorded:Recorded")
    for name in ("cem", "icem", "mppi", "gradient", "beam", "random", "hierarchical"):
        components.add("planner", name, f"hjepa_control.{name}:{name.title()}")
    components.add("cost", "distance", "hjepa_control.distance:Distance")
    components.add("cost", "disagreement", "hjepa_control.disagreement:Disagreement")
    components.add("cost", "remaining", "hjepa_control.remaining:Remaining")
