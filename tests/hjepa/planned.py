"""A small study that says how to act, for all tests of acting."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from hjepa import planning, registry
from hjepa.compose import make_sources, streams_of
from hjepa.planning import Setting
from hjepa.stack import Stack
from hjepa.study import Study, parse

ENCODER = {"name": "conv", "width": 3, "base": 2, "stages": 4}
LEVEL: dict[str, Any] = {"name": "forecast", "predictor": {"name": "mlp", "hidden": 4}, "energy": "l2"}
PLANNER = {"name": "icem", "samples": 4, "elites": 2, "iterations": 2}
STUDY: dict[str, Any] = {
    "data": {"walks": {"name": "trajectories", "of": "two_rooms", "frames": 7, "batch": 2}},
    "levels": {
        "state": {**LEVEL, "encoder": ENCODER},
        "room": {**LEVEL, "encoder": {"name": "latent_mlp", "width": 2, "hidden": 4}, "stride": 2},
    },
    "train": {"steps": 1, "track": False},
    "evaluate": {"samples": 2},
    "plan": {
        "environment": "two_rooms",
        "tasks": {"seed": 1, "count": 3},
        "horizon": {"state": 3},
        "oracle": {1: 4},
        "planner": PLANNER,
        "costs": {
            "goal": {"name": "distance", "level": "state", "weight": 2},
            "true": {"name": "distance", "level": "world", "saturation": 16},
        },
        "replan": 2,
        "steps": 4,
    },
}


def made(**changes: Any) -> Study:
    raw = deepcopy(STUDY)
    raw["plan"] |= changes
    study = parse(raw, registry.load())
    study.problems += planning.problems(study)
    return study


def setting(device: str = "cpu", **changes: Any) -> Setting:
    study = made(**changes)
    study.complain()
    stack = Stack(study, streams_of(make_sources(study))).eval().requires_grad_(False)
    return Setting(study, stack.to(device), torch.device(device))
