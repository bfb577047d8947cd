"""What came of acting: lines, a table, pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hjepa.report import bare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

    from hjepa.planning import Acted, Setting

DRAWN = 8
"""Tasks of which there is a picture."""

FILMED = 4
"""Tasks of which there is a film."""


def table(acted: Mapping[str, Acted], console: Console) -> None:
    """One row a policy: what share of the goals it reached, and what that took."""
    found = bare(
        "by", "reached", "95 %", "at the end", "steps", "path", "predicted steps", "GFLOP", "ms a decision", words=("by",)
    )
    for name, one in acted.items():
        of = one.scores
        found.add_row(
            name,
            _percent(of["success"]),
            f"{_percent(of['low'])} to {_percent(of['high'])}",
            _percent(of["at_the_end"]),
            _number(of["steps"]),
            _number(of.get("path")),
            _number(of.get("evaluations")),
            _number(of.get("gigaflop")),
            _number(1000 * of["seconds"] if "seconds" in of else None),
        )
    console.print(found)
    for name, one in acted.items():
        if "candidate" in one.scores:
            said = (
                f"{_percent(one.scores['candidate'])} of the tasks had a candidate that leads to the goal at the first decision"
            )
            console.print(f" {name}: {said}", highlight=False)


def told(setting: Setting, acted: Mapping[str, Acted]) -> dict[str, Any]:
    """As one object: `plan/<score>` of what was learned, `plan/<policy>_<score>` of what stands beside it."""
    metrics: dict[str, float] = {}
    for name, one in acted.items():
        prefix = "plan/" if name == "planned" else f"plan/{name}_"
        metrics |= {prefix + score: value for score, value in one.scores.items() if math.isfinite(value)}
    return {"run": str(setting.run.path) if setting.run else setting.study.name, "metrics": metrics}


def write(setting: Setting, acted: Mapping[str, Acted]) -> list[Path]:
    """Into the run's folder: all that was found, task by task; a picture of paths; a film."""
    if setting.run is None:
        return []
    folder = setting.run.figures
    folder.mkdir(parents=True, exist_ok=True)
    each = {name: one.record.first.tolist() for name, one in acted.items()}
    columns = list(setting.world.columns)
    kept = told(setting, acted) | {"columns": columns, "tasks": setting.tasks.tolist(), "steps_to_goal": each}
    (setting.run.path / "plan.json").write_text(json.dumps(kept, indent=1))
    name = "planned" if "planned" in acted else list(acted)[-1]
    return [_paths(setting, acted[name], folder / "plan.png"), _film(acted[name], folder / "plan.gif")]


def _paths(setting: Setting, one: Acted, path: Path) -> Path:
    """What a few tasks led through, on what was seen at their start."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(DRAWN, len(setting.tasks))
    figure = Figure(figsize=(3 * min(4, count), 3.2 * math.ceil(count / 4)), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for place in range(count):
        _path(figure.add_subplot(math.ceil(count / 4), min(4, count), place + 1), setting, one, place)
    figure.savefig(path)
    return path


def _path(axes: Axes, setting: Setting, one: Acted, place: int) -> None:
    picture = one.record.frames[0]["frames"][place, 0]
    axes.imshow(picture.amax(0).cpu(), cmap="Greys", vmin=0, vmax=1.6)
    axes.set_axis_off()
    first, steps = int(one.record.first[place]), one.record.reached.shape[1]
    axes.set_title(f"reached after {first} steps" if first <= steps else "not reached", fontsize=9)
    if one.record.position is None:
        return
    way = one.record.position[place, : first + 1].cpu()
    axes.plot(way[:, 0], way[:, 1], color="#2a6f97", linewidth=1.5)
    axes.plot(*way[0], "o", color="#2a6f97", markersize=5)
    axes.plot(*setting.world.goal()["position"][place, 0].cpu(), "*", color="#d1495b", markersize=10)


def _film(one: Acted, path: Path) -> Path:
    """A few tasks side by side, step by step."""
    import torch
    from PIL import Image

    frames = torch.cat([seen["frames"][:FILMED] for seen in one.record.frames], dim=1).amax(2)  # (tasks, T, H, W)
    strips = (255 * torch.cat(list(frames), dim=-1)).round().to(torch.uint8).cpu().numpy()
    pictures = [
        Image.fromarray(strip).resize((3 * strip.shape[1], 3 * strip.shape[0]), Image.Resampling.NEAREST) for strip in strips
    ]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=80, loop=0)
    return path


def line(name: str, one: Acted) -> str:
    """While others are still at work."""
    return f"{name}: {_percent(one.scores['success'])} of the goals"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
