"""The key `search:` of a study: what a sweep varies, what it wants of a trial, and how it goes about it.

    search:
      sampler: tpe
      pruner: {name: median, n_startup_trials: 5}
      objective: {probe/where_next/r2: maximize}
      constraints: {collapse/frame/std_ratio: {at_least: 0.1}}
      trials: 60
      space:
        levels.frame.prevention.0.std: {low: 1.0, high: 100.0, log: true}
        levels.moment.prevention:
          choice:
            directions: [{name: vicreg, std: {low: 1.0, high: 100.0, log: true}}]
            nothing: []

A key of the space is a dotted key of the study, every default included. A choice's value is anything that a study can say there;
a range or a choice *within* it is a parameter that only that branch has, named `<key>.<label>.<where it stands>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hjepa.contracts import Count
from hjepa.errors import Mistake, Problem, StudyMistake, listed, nearest
from hjepa.keys import Keys

if TYPE_CHECKING:
    from hjepa.registry import Registry
    from hjepa.study import Study

# --- keys -------------------------------------------------------------------------------------------------------------


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a finite number is needed")
    return value


Number = Annotated[Any, AfterValidator(_number)]


class Range(Keys):
    """Numbers from `low` to `high`, both included; whole ones where all that is written is whole."""

    low: Number = Field(description="the smallest")
    high: Number = Field(description="the largest")
    log: bool = Field(default=False, description="as many below the geometric mean as above it")
    step: Number | None = Field(default=None, description="only every so much from `low` on")

    @model_validator(mode="after")
    def _sound(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low {self.low} lies above high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic range lies above 0 and has no step")
        if self.step is not None and self.step <= 0:
            raise ValueError("a step is larger than 0")
        return self

    @property
    def whole(self) -> bool:
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 0))

    def steps(self) -> list[int | float]:
        """Every number of a range that has a step."""
        assert self.step is not None
        return [self.low + i * self.step for i in range(int((self.high - self.low) / self.step + 1e-9) + 1)]


class Choice(Keys):
    """One of several values, each with a label."""

    choice: dict[str, Any] = Field(min_length=1, description="label -> value")


class Bound(Keys):
    """What a metric must keep for a trial to count."""

    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Bound:
        if self.at_least is None and self.at_most is None:
            raise ValueError("at_least or at_most is needed")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least} lies above at_most {self.at_most}: nothing can keep both")
        return self

    def excess(self, value: float) -> float:
        """How far the value lies outside; at most 0 where it does not."""
        outside = [] if self.at_least is None else [self.at_least - value]
        return float(max(outside + ([] if self.at_most is None else [value - self.at_most])))


class Strategy(BaseModel):
    """A sampler or pruner of Optuna by name, and its own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    names: ClassVar[Mapping[str, str]]
    name: str

    @model_validator(mode="before")
    @classmethod
    def _named(cls, raw: Any) -> Any:
        raw = {"name": raw} if isinstance(raw, str) else raw
        name = raw.get("name") if isinstance(raw, dict) else raw
        if not isinstance(name, str) or name not in cls.names:
            raise ValueError(f"there is no such one{nearest(str(name), cls.names)} (allowed: {listed(cls.names)})")
        return raw

    @property
    def options(self) -> dict[str, Any]:
        """What is not the name."""
        return dict(self.model_extra or {})


class Sampler(Strategy):
    """What proposes the next trial. `grid` walks through all combinations, and then is done."""

    names: ClassVar[Mapping[str, str]] = {
        "tpe": "TPESampler",
        "gp": "GPSampler",
        "cma_es": "CmaEsSampler",
        "nsga2": "NSGAIISampler",
        "random": "RandomSampler",
        "qmc": "QMCSampler",
        "grid": "RandomSampler",
    }


class Pruner(Strategy):
    """What ends a trial that will not be among the best."""

    names: ClassVar[Mapping[str, str]] = {
        "hyperband": "HyperbandPruner",
        "median": "MedianPruner",
        "wilcoxon": "WilcoxonPruner",
        "none": "NopPruner",
    }


Node = Range | Choice


class Search(Keys):
    """What a sweep does. Trials that collapse are ended where `train.alarm` says so."""

    objective: dict[str, Literal["maximize", "minimize"]] = Field(min_length=1, description="metric, on the split `valid`")
    space: dict[str, Any] = Field(min_length=1, description="dotted key -> {low, high, log, step} or {choice: {label: value}}")
    sampler: Sampler = Field(default=Sampler(name="tpe"), description="what proposes the next trial")
    pruner: Pruner = Field(default=Pruner(name="none"), description="what ends a trial early; with one objective alone")
    constraints: dict[str, Any] = Field(default={}, description="metric -> {at_least: x} or {at_most: x}")
    trials: Count | None = Field(default=None, description="how many there shall be in all")
    every: Count | None = Field(
        default=None,
        description="steps between two reports to the pruner (a probe costs what it costs); a tenth of all by default",
    )

    @model_validator(mode="after")
    def _can_prune(self) -> Search:
        if len(self.objective) > 1 and self.pruner.name != "none":
            raise ValueError("no pruner can weigh several objectives: leave `pruner` out, or name one objective")
        if len(self.objective) > 1 and self.sampler.name == "cma_es":
            raise ValueError("this sampler knows one objective only: take tpe, gp or nsga2 for several")
        return self

    @property
    def metrics(self) -> list[str]:
        """All that is asked of a trial."""
        return list(dict.fromkeys([*self.objective, *self.constraints]))


# --- reading the space ------------------------------------------------------------------------------------------------

Checked = Callable[[type[Any], Any, str], Any]
"""A model of fixed keys, what is written, where -> the model; None where it is wrong, which is noted."""


def read(raw: Any, checked: Checked) -> Search | None:
    """What stands under `search:`."""
    search: Search | None = checked(Search, raw, "search")
    space = {key: _node(value, f"search.space.{key}", checked) for key, value in _pairs(raw, "space")}
    bounds = {key: checked(Bound, value, f"search.constraints.{key}") for key, value in _pairs(raw, "constraints")}
    return None if search is None else search.model_copy(update={"space": space, "constraints": bounds})


def _pairs(raw: Any, key: str) -> list[tuple[str, Any]]:
    """What a mapping within a mapping holds; nothing where it is none, which is noted elsewhere."""
    written = raw.get(key) if isinstance(raw, dict) else None
    return [(str(name), value) for name, value in written.items()] if isinstance(written, dict) else []


def _node(raw: Any, path: str, checked: Checked) -> Node | None:
    if not isinstance(raw, dict) or "choice" not in raw:
        return checked(Range, raw, path)
    values = raw["choice"]
    if not isinstance(values, dict):
        return checked(Choice, raw, path)
    within = {str(label): _within(value, f"{path}.choice.{label}", checked) for label, value in values.items()}
    return checked(Choice, {**raw, "choice": within}, path)


def _within(raw: Any, path: str, checked: Checked) -> Any:
    """A choice's value, in which ranges and choices may stand."""
    if isinstance(raw, list):
        return [_within(item, f"{path}.{position}", checked) for position, item in enumerate(raw)]
    if not isinstance(raw, dict):
        return raw
    if set(raw) == {"choice"} or {"low", "high"} <= set(raw) <= set(Range.model_fields):
        return _node(raw, path, checked)
    return {key: _within(value, f"{path}.{key}", checked) for key, value in raw.items()}


# --- walking through it -----------------------------------------------------------------------------------------------

Pick = Callable[[str, Node], Any]
"""The name of a parameter and what it can be -> a number, or the label of a choice."""


def filled(space: Mapping[str, Node], pick: Pick) -> dict[str, Any]:
    """Dotted key -> value, where `pick` has decided everything; it is asked for what the branches taken hold alone."""
    return {key: _filled(key, node, pick) for key, node in space.items()}


def _filled(name: str, value: Any, pick: Pick) -> Any:
    if isinstance(value, Range):
        return pick(name, value)
    if isinstance(value, Choice):
        label = pick(name, value)
        return _filled(f"{name}.{label}", value.choice[label], pick)
    if isinstance(value, dict):
        return {key: _filled(f"{name}.{key}", item, pick) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(f"{name}.{position}", item, pick) for position, item in enumerate(value)]
    return value


def ways(
    space: Mapping[str, Node], numbers: Callable[[Range], Sequence[Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every way through the space: what was picked, and the values by dotted key. `numbers`: those of a range that count."""
    turns: list[int] = []
    while True:
        sizes: list[int] = []
        picked: dict[str, Any] = {}

        def pick(name: str, node: Node, sizes: list[int] = sizes, picked: dict[str, Any] = picked) -> Any:
            allowed = numbers(node) if isinstance(node, Range) else list(node.choice)
            turns.extend([0] * (len(sizes) == len(turns)))
            picked[name] = allowed[turns[len(sizes)]]
            sizes.append(len(allowed))
            return picked[name]

        yield picked, filled(space, pick)
        while turns and turns[-1] + 1 == sizes[len(turns) - 1]:
            turns.pop()
        if not turns:
            return
        turns[-1] += 1


def combinations(space: Mapping[str, Node]) -> Iterator[dict[str, Any]]:
    """All of a grid, in order."""
    return (picked for picked, _ in ways(space, Range.steps))


def told(search: Search) -> str:
    """One line: how many trials, by which sampler, over what."""
    if search.trials is not None:
        trials = f"{search.trials} trials"
    elif search.sampler.name == "grid":
        trials = f"{sum(1 for _ in combinations(search.space))} trials"
    else:
        trials = "as many trials as --trials says"
    return f"a sweep has {trials} by {search.sampler.name}, over {listed(search.space)}"


def applied(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A study as plain data, with other values at dotted keys. KeyError names one that is not there."""
    result = deepcopy(dict(tree))
    for key, value in values.items():
        *path, last = key.split(".")
        at: Any = result
        for part in path:
            at = at[_place(at, part, key)]
        at[_place(at, last, key)] = value
    return result


def _place(at: Any, part: str, key: str) -> Any:
    """`part` as a key of a mapping, or as a place in a list."""
    if isinstance(at, list) and part.isdecimal() and int(part) < len(at):
        return int(part)
    if isinstance(at, dict) and part in at:
        return part
    raise KeyError(key)


# --- what is wrong ----------------------------------------------------------------------------------------------------


def problems(study: Study, registry: Registry) -> list[Problem]:
    """All that is wrong with the search of a study; every choice is tried, by composing the study with it."""
    from hjepa.sweep import strategies

    search = study.search
    if search is None:
        return []
    found = [*strategies.problems(search), *_metrics(search, study), *_overlaps(search.space)]
    if search.sampler.name == "grid":
        found += [
            Problem(f"search.space.{name}", "a grid needs a step, or a choice, in place of a range")
            for name, node in ranges(search.space)
            if node.step is None
        ]
    if study.problems or any(node is None for node in search.space.values()):
        return found  # what follows from a study that is wrong is no mistake of its own
    base = base_of(study)
    if _wrong(base, registry):
        return found
    return found + [problem for key, node in search.space.items() for problem in _misfits(key, node, base, registry)]


def base_of(study: Study) -> dict[str, Any]:
    """The study without its search, with every default, as plain data."""
    return {key: value for key, value in study.resolved().items() if key != "search"}


def ranges(space: Mapping[str, Any]) -> Iterator[tuple[str, Range]]:
    """Every range of a space, those within choices too, by the name of its parameter."""
    for name, value in space.items():
        if isinstance(value, Range):
            yield name, value
        elif isinstance(value, Choice | dict):
            inner = value.choice if isinstance(value, Choice) else value
            yield from ranges({f"{name}.{key}": item for key, item in inner.items()})
        elif isinstance(value, list):
            yield from ranges({f"{name}.{position}": item for position, item in enumerate(value)})


def _overlaps(space: Iterable[str]) -> Iterator[Problem]:
    for key in space:
        for other in space:
            if key.startswith(f"{other}."):
                said = f"lies within {other}, which is searched too: write it within the values of that choice"
                yield Problem(f"search.space.{key}", said)


def _metrics(search: Search, study: Study) -> Iterator[Problem]:
    """Metrics whose level, probe or diagnostic does not exist. The scores of a probe are known when it has measured."""
    from hjepa.collapse import Reading

    families = {"probe": study.order["probes"]} | dict.fromkeys(
        ("collapse", "loss", "energy", "trivial", "logs"), study.order["levels"]
    )
    diagnostics = sorted({*Reading.__dataclass_fields__, *(name for name in vars(Reading) if not name.startswith("_"))})
    for metric in search.metrics:
        key = "objective" if metric in search.objective else "constraints"
        family, _, rest = metric.partition("/")
        label, _, name = rest.partition("/")
        if family not in families:
            known = [*(f"{family}/..." for family in families), "gradient_norm", "lr"]
            if metric not in known:
                yield Problem(
                    f"search.{key}.{metric}", f"no such metric{nearest(family, families)} (there are: {listed(known)})"
                )
        elif label not in families[family]:
            missing = f"{label!r} in `{'probes' if family == 'probe' else 'levels'}`{nearest(label, families[family])}"
            yield Problem(f"search.{key}.{metric}", f"there is no {missing} (there are: {listed(families[family])})")
        elif family == "collapse" and name.rpartition(".")[2] not in diagnostics:
            near = nearest(name, diagnostics)
            yield Problem(f"search.{key}.{metric}", f"no diagnostic {name!r}{near} (there are: {listed(diagnostics)})")


def _misfits(key: str, node: Node, base: dict[str, Any], registry: Registry) -> Iterator[Problem]:
    """What is wrong where one key of the space is set, the others being as the study has them: each label, and both ends."""
    said: set[tuple[str, str]] = set()
    for end in ("low", "high"):
        for picked, values in ways({key: node}, lambda numbers, end=end: [getattr(numbers, end)]):  # type: ignore[misc]
            branch = ".".join(str(label) for label in picked.values() if isinstance(label, str))
            where = f"search.space.{key}" + (f".choice.{branch}" if branch else "")
            try:
                wrong = _wrong(applied(base, values), registry)
            except KeyError:
                yield _unknown(key, base)
                return
            for problem in wrong:
                about = str(problem) if branch else f"{end} {picked[key]}: {problem}"
                if (where, str(problem)) not in said:
                    said.add((where, str(problem)))
                    yield Problem(where, about)


def _unknown(key: str, base: dict[str, Any]) -> Problem:
    from hjepa.runs import flattened

    known = {".".join(path.split(".")[:depth]) for path in flattened(base) for depth in range(1, path.count(".") + 2)}
    return Problem(f"search.space.{key}", f"the study has no such key{nearest(key, sorted(known))}")


def _wrong(raw: dict[str, Any], registry: Registry) -> list[Problem]:
    """What is wrong with a study that is composed, without allocating anything."""
    from hjepa import optimizers, stack
    from hjepa.study import parse

    study = parse(raw, registry)
    study.problems += optimizers.problems(study)
    try:
        stack.check(study)
    except StudyMistake as mistake:
        return mistake.problems
    except Mistake as mistake:
        return [Problem("", str(mistake))]
    return []
