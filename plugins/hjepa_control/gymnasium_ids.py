"""Worlds of rooms by their names in Gymnasium, for other people's agents.

    gymnasium.make("hjepa_control.gymnasium_ids:hjepa/TwoRooms-v0")
    gymnasium.make_vec("hjepa_control.gymnasium_ids:hjepa/FourRooms-v0", num_envs=64, distractors=2)

What stands before the colon is imported by Gymnasium itself (since 1.0 it looks for no entry points); where this module has been
imported once, `hjepa/TwoRooms-v0` is enough. Options of the world are told as keyword arguments. An episode ends after 200 steps
(arXiv:2502.14819), unless `max_episode_steps` says something else.

Nothing heavy is imported here.
"""

from __future__ import annotations

import gymnasium

STEPS = 200

for _name in ("TwoRooms", "SerialRooms", "FourRooms"):
    gymnasium.register(
        f"hjepa/{_name}-v0",
        entry_point="hjepa_control.gymnasium_rooms:RoomsEnv",
        vector_entry_point="hjepa_control.gymnasium_rooms:RoomsVectorEnv",
        max_episode_steps=STEPS,
        kwargs={"world": _name.replace("Rooms", "_rooms").lower()},
    )
