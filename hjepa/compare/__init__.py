"""Runs and sweeps side by side: what differs between them, what became of each level, as table, pictures and one page.

A reference is the folder of a run or of a sweep, its name in `runs/`, the id that MLflow gave it, a condition in MLflow's words, as
in "tags.`hjepa.verdict.frame` != 'healthy'", or the folder into which a run's `hjepa plan --out` went.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hjepa.compare import served
from hjepa.compare.cells import Cell, number_cell, share_cell, state_cell, verdict_cell, word_cell
from hjepa.compare.digest import Digest, differences, digest, short_names
from hjepa.compare.found import Objectives
from hjepa.compare.overlay import levels_of, sampled
from hjepa.compare.plans import Acted, acted
from hjepa.compare.references import folders_of, run_of
from hjepa.compare.seeds import Repeated, repeated
from hjepa.errors import Mistake, listed
from hjepa.keys import THIRDS
from hjepa.planning.paired import points
from hjepa.tracking.replicas import is_sweep, trials
from hjepa.verdicts import FINE, KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READ = 1000
"""Of so many runs the whole journals are read; of more, the ends, and the journals of those whose curves are drawn."""
MORE = {"more": "against", "more of the far": "far_against"}
"""Titles of the columns that hold policies against the main one."""
NUMBERS = {"std_ratio": "std left", "rank": "rank", "gain": "gain"}
"""Diagnostics that the table shows of every level."""
SEEDS = "what differs in nothing but the seed: mean ± half of the 95 % interval"
ACTED = (
    "goals reached in % by all seeds, in the same tasks, with the 95 % interval for other seeds and other tasks; how many more than "
    "`planned`, or else `oracle`, task by task"
)


@dataclass
class Comparison:
    """Runs, the best first where they are a sweep's, and what is to be said of them together."""

    runs: list[Digest]
    drawn: list[int]
    """The places of those whose curves are drawn."""
    sweep: Path | None = None
    objectives: Objectives = field(default_factory=dict)
    varying: dict[str, list[str]] = field(default_factory=dict)
    link: str | None = None

    @property
    def name(self) -> str:
        """Of the whole."""
        return self.sweep.name if self.sweep else f"{len(self.runs)} runs"

    @property
    def kinds(self) -> dict[str, int]:
        """How many runs became what, the worst first."""
        return _kinds(self.runs)

    @cached_property
    def repeated(self) -> list[Repeated]:
        """What was run with several seeds."""
        return repeated(self.runs, self.varying)

    @property
    def sentence(self) -> str:
        """What a reader wants to know first."""
        total, healthy, unknown = len(self.runs), self.kinds.get("healthy", 0), self.kinds.get("undecided", 0)
        bad = total - healthy - unknown
        said = [f"{count} {kind}" for kind, count in self.kinds.items() if kind not in FINE]
        rest = f"of {unknown} nothing is known yet" if unknown else ""
        if bad:
            what = f"{bad} of {total} runs {'is' if bad == 1 else 'are'} not healthy: {', '.join(said)}"
        else:
            what = f"{healthy} of {total} runs healthy" if healthy else ""
        return "; ".join(filter(None, [what, rest]))

    @property
    def remark(self) -> str:
        """What the pictures leave out."""
        if len(self.drawn) == len(self.runs):
            return ""
        return f"Curves of {len(self.drawn)} of {len(self.runs)} runs, evenly chosen from every kind; the table has all."

    @property
    def levels(self) -> list[str]:
        """Every level that some run says something of."""
        return levels_of(self.runs)

    def columns(self) -> dict[str, list[Cell]]:
        """Title -> a cell a run; what is wrong before the numbers that it rests on."""
        columns: dict[str, list[Cell]] = {"run": [Cell(run.name) for run in self.runs]}
        columns |= {key: [word_cell(words) for words in values] for key, values in self.varying.items()}
        taken = {*columns, "state"}  # a level may be called what varies, or what it stands beside
        for level in self.levels:
            columns[f"{level}: verdict" if level in taken else level] = [verdict_cell(run, level) for run in self.runs]
        for metric in self._scores():
            columns[metric.removeprefix("probe/")] = [number_cell(run.metrics.get(metric)) for run in self.runs]
        for level in self.levels:
            for name, title in NUMBERS.items():
                cells = [number_cell(run.metrics.get(f"collapse/{level}/{name}"), percent=name != "rank") for run in self.runs]
                columns[f"{level}: {title}"] = cells
        columns["state"] = [state_cell(run) for run in self.runs]
        return columns

    def seeds(self) -> dict[str, list[Cell]]:
        """Title -> a cell for each recipe that was run with several seeds; empty where none was."""
        found = self.repeated
        if not found:
            return {}
        columns = {key: [word_cell(one.settings[key]) for one in found] for key in self.varying if key != "seed"}
        columns["seeds"] = [Cell(_counted(self.runs[place] for place in one.places)) for one in found]
        for metric in self._scores():
            scores = [one.scores.get(metric) for one in found]
            columns[metric.removeprefix("probe/")] = [Cell(str(one), one.mean) if one else Cell() for one in scores]
        return columns

    @cached_property
    def acted(self) -> list[Acted]:
        """What came of acting with several seeds."""
        return list(acted(self.runs, self.repeated))

    def plans(self) -> dict[str, list[Cell]]:
        """Title -> a cell for each policy of each recipe that acted with several seeds; empty where none did."""
        found = [(one, name) for one in self.acted for name in one.policies]
        if not found:
            return {}
        settings = [key for key in self.varying if key != "seed" and len(self.acted) > 1]
        columns = {key: [word_cell(one.recipe.settings[key]) for one, _ in found] for key in settings}
        columns["by"] = [Cell(name) for _, name in found]
        policies = [one.policies[name] for one, name in found]
        scores = [policy.scores for policy in policies]
        columns["reached"] = [share_cell(of, "success") for of in scores]
        columns["95 %"] = [Cell(f"{100 * of['low']:.0f} to {100 * of['high']:.0f}") for of in scores]
        columns["each seed"] = [Cell(", ".join(f"{100 * share:.0f}" for share in policy.each)) for policy in policies]
        columns |= {third: [share_cell(of, third) for of in scores] for third in THIRDS}
        columns |= {title: [Cell(points(of, score), of.get(score)) for of in scores] for title, score in MORE.items()}
        columns["at the end"] = [share_cell(of, "at_the_end") for of in scores]
        columns["GFLOP"] = [number_cell(of.get("gigaflop")) for of in scores]
        columns["tasks"] = [Cell(f"{len(one.places)} x {one.tasks}") for one, _ in found]
        return columns

    def _scores(self) -> list[str]:
        """What the sweep wants; else the first score of every probe."""
        first: dict[str, str] = {}
        for run in self.runs:
            for metric in run.metrics:
                if metric.startswith("probe/"):
                    first.setdefault(metric.split("/")[1], metric)
        return [*self.objectives] or [*first.values()]


def _kinds(runs: Iterable[Digest]) -> dict[str, int]:
    """How many runs became what, the worst first."""
    counts = Counter(run.kind for run in runs)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def _counted(runs: Iterable[Digest]) -> str:
    """`3 healthy`."""
    return ", ".join(f"{count} {kind}" for kind, count in _kinds(runs).items())


# --- from references to runs ------------------------------------------------------------------------------------------


def gather(references: Sequence[str], root: Path = Path("runs")) -> Comparison:
    """What the references name, read. Raises `Mistake` where one names nothing."""
    folders: dict[Path, None] = {}
    for reference in references:
        folders |= dict.fromkeys(folders_of(reference, root))
    sweeps = [folder for folder in folders if is_sweep(folder)]
    paths = list(dict.fromkeys(path for folder in folders for path in (trials(folder) if is_sweep(folder) else [folder])))
    if not paths:
        raise Mistake(f"{listed(map(str, folders))}: no trial has begun yet")
    return _read(paths, sweeps[0] if len(folders) == len(sweeps) == 1 else None)


def _read(paths: Sequence[Path], sweep: Path | None) -> Comparison:
    names = short_names(paths)
    runs = [digest(run_of(path), name, whole=len(paths) <= READ) for path, name in zip(paths, names, strict=True)]
    objectives = objectives_of(sweep) if sweep else {}
    drawn = sampled(runs)
    if len(paths) > READ:
        for number in drawn:
            runs[number] = digest(run_of(paths[number]), names[number])
    for run, path in zip(runs, paths, strict=True):
        run.acted = path
    return Comparison(runs, drawn, sweep, objectives, differences(runs), served.link(runs))


def objectives_of(sweep: Path) -> Objectives:
    """What the sweep wants: metric -> `maximize` or `minimize`."""
    found = Digest(sweep, sweep.name).study.get("search")
    return dict(found.get("objective", {})) if isinstance(found, dict) else {}


# --- what is shown ----------------------------------------------------------------------------------------------------


def pictures(told: Comparison) -> dict[str, Figure]:
    """Title -> figure."""
    from hjepa.compare import found, overlay

    figures = {"curves": overlay.curves(told.runs, told.drawn)}
    return figures | (found.drawings(told.runs, told.objectives) if told.sweep else {})


def write(told: Comparison, out: Path) -> list[Path]:
    """The pictures and the page, in the folder `out`, which is made: the page first. `Mistake` where nothing can be written."""
    from hjepa.compare.page import page

    figures = pictures(told)
    files = [out / "index.html", *(out / f"{title.replace(' ', '_')}.png" for title in figures)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, figure in zip(files[1:], figures.values(), strict=True):
            figure.savefig(file)
        files[0].write_text(page(told, figures))
    except OSError as error:
        raise Mistake(f"{out}: page and pictures cannot be written: {error}; give another --out") from None
    return files


def place_of(told: Comparison, root: Path = Path("runs")) -> Path:
    """Where a comparison goes that nobody gave a place."""
    return told.sweep / "compare" if told.sweep else root / "compare"


def ranked(told: Comparison) -> list[int]:
    """The places of the runs: the best first where a sweep has one objective, else as they were named."""
    places = list(range(len(told.runs)))
    if len(told.objectives) != 1:
        return places
    ((metric, direction),) = told.objectives.items()
    sign = -1 if direction == "maximize" else 1
    values = [sign * run.metrics.get(metric, math.nan) for run in told.runs]
    return sorted(places, key=lambda place: (math.isnan(values[place]), values[place]))


def as_json(told: Comparison, files: Iterable[Path]) -> dict[str, Any]:
    """The whole of it for programs."""
    rows = [
        {
            "run": run.name,
            "path": str(run.path),
            "state": run.state,
            "step": run.step,
            "verdicts": run.verdicts,
            "varying": {key: values[place] for key, values in told.varying.items()},
            "metrics": {name: value for name, value in run.metrics.items() if _is_told(name, told.objectives)},
        }
        for place, run in enumerate(told.runs)
    ]
    seeds = [
        {
            "runs": [told.runs[place].name for place in one.places],
            "settings": one.settings,
            "scores": {metric: score._asdict() for metric, score in one.scores.items()},
        }
        for one in told.repeated
    ]
    plans = [
        {
            "runs": [told.runs[place].name for place in one.places],
            "settings": one.recipe.settings,
            "policies": {name: {"each": policy.each, **policy.scores} for name, policy in one.policies.items()},
        }
        for one in told.acted
    ]
    return {
        "runs": rows,
        "seeds": seeds,
        "plans": plans,
        "kinds": told.kinds,
        "mlflow": told.link,
        "files": [str(file) for file in files],
    }


def _is_told(metric: str, objectives: Objectives) -> bool:
    return metric.startswith(("collapse/", "probe/")) or metric in objectives
