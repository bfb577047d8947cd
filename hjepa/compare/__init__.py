"""Runs and sweeps side by side: what differs between them, what became of each level, as table, pictures and one page.

A reference is the folder of a run or of a sweep, its name in `runs/`, the id that MLflow gave it, or a condition in MLflow's
words, as in "tags.`hjepa.verdict.frame` != 'healthy'".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hjepa.compare import served
from hjepa.compare.digest import Digest, differences, digest, short_names
from hjepa.compare.found import Objectives
from hjepa.compare.overlay import levels_of, sampled
from hjepa.compare.plans import Acted, acted
from hjepa.compare.seeds import Repeated, repeated
from hjepa.errors import Mistake, listed
from hjepa.keys import THIRDS
from hjepa.planning.paired import points
from hjepa.tracking.replicas import is_sweep, trials
from hjepa.verdicts import FINE, KINDS, VERDICT_COLOURS, kind_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

READ = 1000
"""Of so many runs the whole journals are read; of more, the ends, and the journals of those whose curves are drawn."""
LISTED = 40
"""Rows that the terminal shows; the page and `--json` have all."""
WIDEST = 32
"""Characters in a cell of the terminal."""
MORE = {"more": "against", "more of the far": "far_against"}
"""Titles of the columns that hold policies against the main one."""
NUMBERS = {"std_ratio": "std left", "rank": "rank", "gain": "gain"}
"""Diagnostics that the table shows of every level."""
SEEDS = "what differs in nothing but the seed: mean ± half of the 95 % interval"
ACTED = (
    "goals reached in %, in the tasks of all seeds, with their 95 % interval (Wilson); how many more than `planned`, or else `oracle`, "
    "task by task (Bonett and Price)"
)


@dataclass(frozen=True)
class Cell:
    """What stands in a table."""

    text: str = ""
    value: float | None = None
    """By which it is sorted, where it is a number."""
    kind: str | None = None
    """Of the verdict that it is."""
    hint: str = ""


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
        columns |= {key: [_cell(words) for words in values] for key, values in self.varying.items()}
        taken = {*columns, "state"}  # a level may be called what varies, or what it stands beside
        for level in self.levels:
            columns[f"{level}: verdict" if level in taken else level] = [_verdict(run, level) for run in self.runs]
        for metric in self._scores():
            columns[metric.removeprefix("probe/")] = [_number(run.metrics.get(metric)) for run in self.runs]
        for level in self.levels:
            for name, title in NUMBERS.items():
                cells = [_number(run.metrics.get(f"collapse/{level}/{name}"), percent=name != "rank") for run in self.runs]
                columns[f"{level}: {title}"] = cells
        columns["state"] = [_state(run) for run in self.runs]
        return columns

    def seeds(self) -> dict[str, list[Cell]]:
        """Title -> a cell for each recipe that was run with several seeds; empty where none was."""
        found = self.repeated
        if not found:
            return {}
        columns = {key: [_cell(one.settings[key]) for one in found] for key in self.varying if key != "seed"}
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
        columns = {key: [_cell(one.recipe.settings[key]) for one, _ in found] for key in settings}
        columns["by"] = [Cell(name) for _, name in found]
        policies = [one.policies[name] for one, name in found]
        scores = [policy.scores for policy in policies]
        columns["reached"] = [_share(of, "success") for of in scores]
        columns["95 %"] = [Cell(f"{100 * of['low']:.0f} to {100 * of['high']:.0f}") for of in scores]
        columns["each seed"] = [Cell(", ".join(f"{100 * share:.0f}" for share in policy.each)) for policy in policies]
        columns |= {third: [_share(of, third) for of in scores] for third in THIRDS}
        columns |= {title: [Cell(points(of, score), of.get(score)) for of in scores] for title, score in MORE.items()}
        columns["GFLOP"] = [_number(of.get("gigaflop")) for of in scores]
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


def _share(scores: Mapping[str, float], name: str) -> Cell:
    """In percent."""
    return Cell(f"{100 * scores[name]:.0f}", scores[name]) if name in scores else Cell()


def _cell(words: str) -> Cell:
    try:
        return Cell(words, float(words))
    except ValueError:
        return Cell(words)


def _number(value: float | None, percent: bool = False) -> Cell:
    if value is None:
        return Cell()
    if not percent:
        return Cell(f"{value:.3g}", value)
    return Cell("< -100 %" if value < -1 else f"{100 * value:.0f} %" if abs(value) >= 0.1 else f"{100 * value:.2g} %", value)


def _verdict(run: Digest, level: str) -> Cell:
    words = run.verdicts.get(level, "")
    kind = kind_of(words)
    hint = "\n".join(filter(None, [words, run.alarms.get(level, "")]))
    return Cell(kind if words else "", float(KINDS.index(kind)), kind if words else None, hint)


def _state(run: Digest) -> Cell:
    damage = f", {run.damaged} lines damaged" if run.damaged else ""
    at = "" if run.state == "done" else f" at step {run.step}"
    return Cell(run.state + at + damage, hint="\n".join(run.alarms.values()))


# --- from references to runs ------------------------------------------------------------------------------------------


def gather(references: Sequence[str], root: Path = Path("runs")) -> Comparison:
    """What the references name, read. Raises `Mistake` where one names nothing."""
    folders: dict[Path, None] = {}
    for reference in references:
        folders |= dict.fromkeys(_named(reference, root))
    sweeps = [folder for folder in folders if is_sweep(folder)]
    paths = list(dict.fromkeys(path for folder in folders for path in (trials(folder) if is_sweep(folder) else [folder])))
    if not paths:
        raise Mistake(f"{listed(map(str, folders))}: no trial has begun yet")
    return _read(paths, sweeps[0] if len(folders) == len(sweeps) == 1 else None)


def _read(paths: Sequence[Path], sweep: Path | None) -> Comparison:
    names = short_names(paths)
    runs = [digest(path, name, whole=len(paths) <= READ) for path, name in zip(paths, names, strict=True)]
    objectives = objectives_of(sweep) if sweep else {}
    drawn = sampled(runs)
    if len(paths) > READ:
        for number in drawn:
            runs[number] = digest(paths[number], names[number])
    return Comparison(runs, drawn, sweep, objectives, differences(runs), served.link(runs))


def objectives_of(sweep: Path) -> Objectives:
    """What the sweep wants: metric -> `maximize` or `minimize`."""
    found = Digest(sweep, sweep.name).study.get("search")
    return dict(found.get("objective", {})) if isinstance(found, dict) else {}


def _named(reference: str, root: Path) -> list[Path]:
    for path in (Path(reference), root / reference):
        if is_sweep(path) or _is_run(path):
            return [path.resolve()]
    if served.looks_like_id(reference):
        return [served.with_id(reference, root)]
    if served.looks_like_filter(reference):
        return served.fitting(reference, root)
    within = sorted(path for path in Path(reference).glob("*") if is_sweep(path) or _is_run(path))
    if within:
        return [path.resolve() for path in within]
    known = sorted(path.name for path in root.glob("*") if is_sweep(path) or _is_run(path))
    raise Mistake(f"no run or sweep at {reference!r} (in {root}/ there are: {listed(known)})")


def _is_run(path: Path) -> bool:
    return (path / "resolved.yaml").is_file() or (path / "journal.jsonl").is_file()


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


def table(told: Comparison, console: Console) -> None:
    """Prints a row a run, and how many became what."""
    order = ranked(told)
    listed = {title: [cells[place] for place in order[:LISTED]] for title, cells in _narrow(told, console.width).items()}
    console.print(_laid(listed, console.width))
    if len(order) > LISTED:
        console.print(f"the first {LISTED} of {len(order)}; the page and --json have all", style="dim", highlight=False)
    if told.repeated:
        console.print(f"\n{SEEDS}", style="dim", highlight=False)
        console.print(_laid(told.seeds(), console.width))
    if told.acted:
        console.print(f"\n{ACTED}", style="dim", highlight=False)
        plans = told.plans()
        while sum(map(_width, plans.items())) > console.width and list(plans)[-1] != "95 %":
            plans.popitem()  # the page and --json have all
        console.print(_laid(plans, console.width))
    console.print(told.sentence, style="bold", highlight=False)


def _laid(columns: dict[str, list[Cell]], width: int) -> Table:
    """A row a run; where that is too wide, and the other way is narrower, a column a run."""
    from hjepa.report import bare

    runs = list(zip(*columns.values(), strict=True))
    upright = sum(map(_width, columns.items()))
    aside = _width(("", [Cell(title) for title in columns])) + sum(_width(("", list(cells))) for cells in runs)
    if aside < upright > width:
        made = bare("", *(str(number) for number, _ in enumerate(runs, start=1)), words=("",))
        for title, cells in columns.items():
            made.add_row(title, *map(_coloured, cells))
        return made
    numeric = {title for title, cells in columns.items() if any(cell.value is not None and not cell.kind for cell in cells)}
    made = bare(*columns, words=[title for title in columns if title not in numeric])
    for run in runs:
        made.add_row(*map(_coloured, run))
    return made


def _coloured(cell: Cell) -> Text:
    from rich.text import Text

    return Text(_cut(cell.text), style=VERDICT_COLOURS[cell.kind] if cell.kind else "")


def _narrow(told: Comparison, width: int) -> dict[str, list[Cell]]:
    """The columns of a terminal: the numbers of a level in one, where there is room for them."""
    columns = told.columns()
    for level in told.levels:
        apart = [columns.pop(f"{level}: {title}") for title in NUMBERS.values()]
        title = f"{level}: {', '.join(NUMBERS.values())}"
        columns[title] = [
            Cell(" ".join(f"{cell.text:>7}" for cell in cells), cells[0].value) for cells in zip(*apart, strict=True)
        ]
    if {cell.text for cell in columns["state"]} == {"done"}:
        del columns["state"]
    while sum(map(_width, columns.items())) > width and ": " in list(columns)[-1]:
        columns.popitem()
    return columns


def _width(column: tuple[str, list[Cell]]) -> int:
    title, cells = column
    return 3 + max(len(title), *(len(_cut(cell.text)) for cell in cells))


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


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
