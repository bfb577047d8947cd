"""What came of acting: lines, a table, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hjepa.contracts import States
from hjepa.errors import Mistake
from hjepa.keys import THIRDS
from hjepa.planning import compute, kept, maps, paired
from hjepa.planning.episodes import SHOWN, Planned
from hjepa.planning.maps import Map
from hjepa.report import bare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table

    from hjepa.planning import Acted, Setting

MOMENTS = 5
"""Of each of them."""

REACHED, TAKEN = "goals reached, %", "what that took"
SPENT = ("steps", "path", "evaluations", "gigaflop")
FAILING = """ found: of so many tasks a candidate of the first decision leads to the goal
 surprise: how far what came is from what was foreseen, over how far it moved
 promised, paid: what it should cost to stand where plans lead by the next decision, and what it did (medians)"""

WAY, GOAL, SENT = "#2a6f97", "#d1495b", "#e09f3e"

FILMED = 4
"""Tasks of which there is a film."""


def table(acted: Mapping[str, Acted], console: Console) -> None:
    """A row a policy: which share of the goals it reached, and how many points more than the main one; what that took; what fails."""
    console.print(_reached(acted))
    console.print(_taken(acted))
    planning = {name: one.scores for name, one in acted.items() if "surprise" in one.scores or "candidate" in one.scores}
    if planning:
        console.print(_failing(planning))
        console.print(FAILING, style="dim", highlight=False)


def _reached(acted: Mapping[str, Acted]) -> Table:
    main, differences = paired.main_of(acted), paired.against(acted)
    found = bare(REACHED, "all", "95 %", *THIRDS, *([f"more than {main}"] if main else []), "at the end", words=[REACHED])
    for name, one in acted.items():
        of, more = one.scores, [paired.points(differences.get(name, {}))] if main else []
        thirds = (_percent(of.get(third)) for third in THIRDS)
        ends = f"{_percent(of['low'])} to {_percent(of['high'])}"
        found.add_row(name, _percent(of["success"]), ends, *thirds, *more, _percent(of["at_the_end"]))
    return found


def _taken(acted: Mapping[str, Acted]) -> Table:
    found = bare(TAKEN, "steps", "path", "predicted steps", "GFLOP", "ms a decision", words=[TAKEN])
    for name, one in acted.items():
        of = one.scores
        seconds = of.get("seconds", math.nan)
        found.add_row(name, *(_number(of.get(score)) for score in SPENT), _number(1000 * seconds))
    return found


def _failing(planning: Mapping[str, Mapping[str, float]]) -> Table:
    found = bare("search or model?", "found, %", "surprise, %", "promised", "paid", words=["search or model?"])
    for name, of in planning.items():
        shares = (_percent(of.get(score)) for score in ("candidate", "surprise"))
        found.add_row(name, *shares, *(_number(of.get(score)) for score in ("promised", "paid")))
    return found


def told(setting: Setting, acted: Mapping[str, Acted]) -> dict[str, Any]:
    """As one object: `plan/<score>` of what was learned, `plan/<policy>_<score>` of what stands beside it."""
    metrics: dict[str, float] = {}
    differences = paired.against(acted)
    for name, one in acted.items():
        scores = one.scores | differences.get(name, {})
        metrics |= {kept.prefix(name) + score: value for score, value in scores.items() if math.isfinite(value)}
    return {"run": str(setting.run.path) if setting.run else setting.study.name, "metrics": metrics}


def place(setting: Setting, out: Path | None) -> tuple[Path, Path] | None:
    """The folders of what was found and of its pictures, made: `out`, or those of the run; none where there is neither."""
    if out is not None:
        folders = (out, out)
    elif setting.run is not None:
        folders = (setting.run.path, setting.run.figures)
    else:
        return None
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):  # a folder that is there already need not be one to write in
                pass
        except OSError as error:
            raise Mistake(f"{folder}: pictures cannot be written there: {error.strerror}") from None
    return folders


def write(setting: Setting, acted: Mapping[str, Acted], out: Path | None = None) -> list[Path]:
    """Into `out`, or the run's folder: all that was found, task by task; pictures of paths, and of what success takes; a film."""
    folders = place(setting, out)
    if folders is None:
        return []
    found, pictures = folders
    kept.write(found, setting, acted, told(setting, acted))
    main = acted[paired.main_of(acted) or next(iter(acted))]
    made = [_paths(setting, main, pictures / "plan.png"), _film(main, pictures / "plan.gif")]
    planning = [name for name, one in acted.items() if isinstance(one.policy, Planned)]
    if len(planning) > 1:
        ways = {name: setting.ways[name] for name in planning}
        learned = [name for name, way in ways.items() if way.keys.horizon and not way.exact]
        scores = {name: one.scores for name, one in acted.items()}
        made.append(compute.picture(pictures / "compute.png", scores, planning, learned))
    return made


def _paths(setting: Setting, one: Acted, path: Path) -> Path:
    """A few tasks: the way and where upper levels sent it, what every place costs as the lowest level sees it, and moments."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    setting.world.reset(setting.tasks)  # maps begin others
    count, goals = min(SHOWN, len(setting.tasks)), setting.world.goal()
    mapped = [maps.of_task(setting, number, _sides(one)) for number in range(count)]
    pictured = "frames" in goals and "position" not in goals  # where goals are nowhere else to be seen
    columns = 1 + any(found is not None for found in mapped) + MOMENTS + pictured
    figure = Figure(figsize=(1.7 * columns, 1.95 * count), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, columns, squeeze=False)
    for number, (row, found) in enumerate(zip(axes, mapped, strict=True)):
        goal = goals["position"][number, 0].cpu() if "position" in goals else None
        _way(row[0], one, number, goal, found)
        if found is not None:
            _costs(row[1], found, goal, one.record.frames[0]["frames"][number, 0].amax(0).cpu())
        for panel, step in zip(row[columns - pictured - MOMENTS : columns - pictured], _moments(one, number), strict=True):
            _moment(panel, one, number, step)
        if pictured:
            _picture(row[-1], _coloured(goals["frames"][number, 0]).cpu(), "goal")
    figure.savefig(path)
    return path


def _sides(one: Acted) -> tuple[int, int]:
    """Height and width of what is seen, in pixels."""
    height, width = one.record.frames[0]["frames"].shape[-2:]
    return height, width


def _until(one: Acted, number: int) -> int:
    """After how many steps a task ended, reached or not."""
    return min(int(one.record.first[number]), one.record.reached.shape[1])


def _moments(one: Acted, number: int) -> list[int]:
    return [round(share * _until(one, number) / (MOMENTS - 1)) for share in range(MOMENTS)]


def _moment(axes: Axes, one: Acted, number: int, step: int) -> None:
    _picture(axes, _coloured(one.record.frames[step]["frames"][number, 0]).cpu(), f"step {step}")


def _picture(axes: Axes, pixels: Tensor, title: str) -> None:
    """(H, W) or (H, W, 3), in [0, 1]."""
    axes.imshow(pixels, cmap="Greys", vmin=0, vmax=1.6)
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _coloured(pictures: Tensor) -> Tensor:
    """(..., C, H, W) -> (..., H, W, 3) of three colours; of other channels (..., H, W), whichever is the brightest: walls, and dots."""
    return pictures.movedim(-3, -1) if pictures.shape[-3] == 3 else pictures.amax(-3)


def _way(axes: Axes, one: Acted, number: int, goal: Tensor | None, found: Map | None) -> None:
    _moment(axes, one, number, 0)
    first, steps = int(one.record.first[number]), one.record.reached.shape[1]
    axes.set_title(f"reached after {first}" if first <= steps else "not reached", fontsize=8)
    if one.record.position is None or goal is None:
        return
    way = one.record.position[number, : _until(one, number) + 1].cpu()
    axes.plot(way[:, 0], way[:, 1], color=WAY, linewidth=1.2)
    axes.plot(*way[0], "o", color=WAY, markersize=4)
    axes.plot(*goal, "*", color=GOAL, markersize=8)
    if found is not None:
        sent = [found.place_of(1, waypoint).cpu().tolist() for waypoint in _sent(one, number)]
        axes.plot([x for x, _ in sent], [y for _, y in sent], ".-", color=SENT, markersize=4, linewidth=0.5)


def _sent(one: Acted, number: int) -> Iterator[States]:
    """Where the lowest level was sent, decision by decision, until the task ended."""
    if not isinstance(one.policy, Planned):
        return
    steps = one.record.reached.shape[1]
    for left, waypoints in zip(one.policy.left, one.policy.waypoints, strict=True):
        if 0 in waypoints and steps - left < _until(one, number):
            yield waypoints[0].rows(torch.tensor([number]))


def _costs(axes: Axes, found: Map, goal: Tensor | None, pixels: Tensor) -> None:
    sides = tuple(pixels.shape)
    (top, left), (bottom, right) = ([share * side for side in sides] for share in (maps.EDGE, 1 - maps.EDGE))
    axes.imshow(found.cost.view(maps.FINE, maps.FINE).cpu(), extent=(left, right, bottom, top), cmap="viridis")
    axes.set(xlim=(-0.5, sides[1] - 0.5), ylim=(sides[0] - 0.5, -0.5))
    axes.imshow(torch.ones_like(pixels), cmap="Greys", vmin=0, vmax=1, alpha=0.5 * pixels)  # walls, as a shade
    axes.set_title("cost (dark: little)", fontsize=8)
    axes.set_axis_off()
    if goal is not None:
        axes.plot(*goal, "*", color=GOAL, markersize=8)


def _film(one: Acted, path: Path) -> Path:
    """A few tasks side by side, step by step."""
    from PIL import Image

    frames = _coloured(torch.cat([seen["frames"][:FILMED] for seen in one.record.frames], dim=1))  # (tasks, T, H, W, ...)
    strips = (255 * torch.cat(list(frames), dim=2)).round().to(torch.uint8).cpu().numpy()
    pictures = [
        Image.fromarray(strip).resize((3 * strip.shape[1], 3 * strip.shape[0]), Image.Resampling.NEAREST) for strip in strips
    ]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=80, loop=0)
    return path


def line(name: str, one: Acted) -> str:
    """While others are still at work."""
    return f"{name}: {_percent(one.scores['success'])} % of the goals"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
