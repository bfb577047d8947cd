"""What is kept of acting, task by task; and what runs with several seeds have reached, all their tasks together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hjepa.keys import PLANNED
from hjepa.planning import crossed, episodes, paired

if TYPE_CHECKING:
    from hjepa.planning import Acted, Setting

FILE = "plan.json"


@dataclass(frozen=True)
class Kept:
    """What one run has left."""

    tasks: list[list[float]]
    distance: Tensor | None
    """(B,): how far goals are, where that is known."""
    ways: dict[str, Any]
    """How each policy planned that did."""
    world: Any
    """And in which, and for how many steps; that of all."""
    reached: dict[str, Tensor]
    """(B,) bool, by policy."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Pooled:
    """What one policy has reached with several seeds."""

    each: list[float]
    """The share of goals, by seed."""
    scores: dict[str, float]
    """As those of one seed, of all tasks together; `far_against`, where goals are furthest, too."""


def prefix(policy: str) -> str:
    """What the names of its scores begin with."""
    return "plan/" if policy == PLANNED else f"plan/{policy}_"


def write(place: Path, setting: Setting, acted: Mapping[str, Acted], told: Mapping[str, Any]) -> None:
    """Into a folder: what is told of them, and what came of each task: the steps to its goal, None where it was never reached."""
    steps = {name: [_step(one.record, number) for number in range(len(setting.tasks))] for name, one in acted.items()}
    each = {
        "ways": {name: way.written() for name, way in setting.ways.items()},
        "world": {"environment": setting.plan.environment.written(), "steps": setting.keys.steps},
        "columns": list(setting.world.columns),
        "tasks": setting.tasks.tolist(),
        "away": None if setting.distance is None else setting.distance.tolist(),
        "steps_to_goal": steps,
    }
    (place / FILE).write_text(json.dumps({**told, **each}, indent=1))


def _step(record: episodes.Record, number: int) -> int | None:
    return int(record.first[number]) if record.reached[number].any() else None


def read(place: Path) -> Kept | None:
    """What lies in a run's folder; None where nothing does that can be read."""
    try:
        kept = json.loads((place / FILE).read_text())
        distance = None if kept["away"] is None else torch.tensor(kept["away"])
        reached = {name: torch.tensor([step is not None for step in steps]) for name, steps in kept["steps_to_goal"].items()}
        return Kept(kept["tasks"], distance, dict(kept["ways"]), kept["world"], reached, dict(kept["metrics"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def pooled(runs: Sequence[Kept]) -> dict[str, Pooled]:
    """By policy, of runs that did the same tasks: of those that acted alike in all of them."""
    alike = [
        name
        for name in runs[0].reached
        if all(name in run.reached and run.ways.get(name) == runs[0].ways.get(name) for run in runs)
    ]
    reached = {name: torch.stack([run.reached[name] for run in runs]) for name in alike}
    main = reached.get(paired.main_of(alike) or "")
    return {name: _together(name, hit, None if hit is main else main, runs) for name, hit in reached.items()}


def _together(name: str, hit: Tensor, main: Tensor | None, runs: Sequence[Kept]) -> Pooled:
    """Of goals (runs, B) bool that a policy reached, and the main one, where it is another."""
    scores, distance = crossed.share(hit), runs[0].distance
    if main is not None:
        scores |= crossed.difference(hit, main)
    if distance is not None:
        scores |= episodes.by_distance(hit, distance, crossed.share)
        far = episodes.thirds(distance).get("far")
        if main is not None and far is not None:
            scores |= {f"far_{score}": value for score, value in crossed.difference(hit[:, far], main[:, far]).items()}
    for score in ("gigaflop", "at_the_end"):
        each = [run.metrics[prefix(name) + score] for run in runs if prefix(name) + score in run.metrics]
        if each:
            scores[score] = sum(each) / len(each)
    return Pooled(hit.float().mean(1).tolist(), scores)
