"""From a study to its levels: every component made when its neighbours are known, everything that does not fit noted at once.

A level reads a stream of a source, or levels below it, in windows at its own clock: own step i sees the steps
`i * stride ... i * stride + window - 1` of what it reads, so it never sees its own future. On the meta device nothing is
allocated, so that a study can be refused before it costs anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from hjepa.contracts import Build, Dataset, Spec
from hjepa.errors import Mistake, Problem, listed, nearest, some
from hjepa.nn.states import window_spec
from hjepa.parts import Component, LevelPlan, Shared
from hjepa.randomness import Key
from hjepa.study import Study

LARGEST = 10_000
"""Modules of a stack: far above any that trains, far below what a slip of the finger asks for."""
REFUSALS = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError, OSError, Mistake)
"""What a component raises that cannot work with its options: its own words, and what torch says to sizes beyond all measure."""

# --- making components ------------------------------------------------------------------------------------------------


class Misfit(Exception):
    """A component refused what it was given."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Lost(Exception):
    """What is needed could not be understood or made; that is noted already."""


class Maker:
    """Makes the components of a study. Parameters are drawn from `(seed, path)`; what is shared is made once."""

    def __init__(self, study: Study) -> None:
        self.seed = study.seed
        nodes = [node for plan in study.levels.values() for node in plan.component.walk()]
        self._at = {node.path: node for node in nodes if isinstance(node, Component)}
        self._targets = {node.target for node in nodes if isinstance(node, Shared)}
        self._shared: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        self._begun: dict[str, bool] = {}
        """What was begun to be made of that which is shared, and whether that has ended."""

    def make(self, node: Component | Shared, *neighbours: Any) -> Any:
        if isinstance(node, Shared) and node.target not in self._at:
            raise Lost
        component = self._at[node.target] if isinstance(node, Shared) else node
        if component.path not in self._targets:
            return self._new(component, neighbours)
        if component.path not in self._shared:
            self._shared[component.path] = (self._once(component, node, neighbours), neighbours)
        instance, known = self._shared[component.path]
        if _shapes(known) != _shapes(neighbours):
            raise Misfit(
                Problem(node.path, f"cannot be one with {component.path}: that reads {_told(known)}, this {_told(neighbours)}")
            )
        return instance

    def _once(self, component: Component, node: Component | Shared, neighbours: tuple[Any, ...]) -> Any:
        if component.path in self._begun:
            if self._begun[component.path]:
                raise Lost
            raise Misfit(Problem(node.path, f"{component.path} cannot be a part of itself"))
        self._begun[component.path] = False
        try:
            return self._new(component, neighbours)
        finally:
            self._begun[component.path] = True

    def _new(self, component: Component, neighbours: tuple[Any, ...]) -> Any:
        options = {name: self._ready(value) for name, value in component.options.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(Key.of(self.seed, component.path).word) % (1 << 63))
            try:
                return component.found(*neighbours, **options)
            except REFUSALS as error:
                said = str(error).partition("\n")[0] or type(error).__name__
                raise Misfit(Problem(component.path, said)) from error

    def _ready(self, value: Any) -> Any:
        """Components within an option become factories."""
        if isinstance(value, Component | Shared):
            return Factory(self, value)
        if isinstance(value, list):
            return [self._ready(item) for item in value]
        if isinstance(value, dict):
            return {key: self._ready(item) for key, item in value.items()}
        return value


class Factory(Build[Any]):
    """A component that is made when its owner knows its neighbours."""

    def __init__(self, maker: Maker, node: Component | Shared) -> None:
        self.maker, self.node, self.path = maker, node, node.path
        self.shared = isinstance(node, Shared)
        self.name = node.name if isinstance(node, Component) else "shared"

    def __call__(self, *neighbours: Any) -> Any:
        return self.maker.make(self.node, *neighbours)


def _shapes(neighbours: tuple[Any, ...]) -> tuple[Any, ...]:
    """What must agree for an instance to be shared: everything but the ticks."""
    return tuple(replace(n, ticks=()) if isinstance(n, Spec) else n for n in neighbours)


@contextmanager
def limited(modules: int) -> Iterator[None]:
    """Ends the making of layer after layer where somebody asked for a million of them."""
    made = itertools.count()

    def count(owner: nn.Module, name: str, module: nn.Module) -> None:
        if next(made) >= modules:
            raise ValueError(f"more than {modules:,} modules: one of the numbers is far too large")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _told(neighbours: tuple[Any, ...]) -> str:
    return ", ".join(_seen(n) if isinstance(n, Spec) else str(n) for n in neighbours)


def _seen(spec: Spec) -> str:
    """What a spec says of one step, in words."""
    shown = [f"tokens {list(spec.grid)} of width {spec.width}"] * bool(spec.width)
    shown += [f"maps {', '.join(str(size) for size in spec.maps)}"] * bool(spec.maps)
    side_by_side = f", {spec.joined} side by side" if spec.joined > 1 else ""
    shown += [f"actions of width {spec.actions}{side_by_side}"] * bool(spec.actions)
    shown += [f"a condition of width {spec.condition}"] * bool(spec.condition)
    return " and ".join([*shown, *(_seen(part) for part in spec.parts)]) or "nothing"


# --- the graph --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """Where one level stands in the graph."""

    label: str
    source: str
    reads: tuple[str, ...]
    plan: LevelPlan

    @property
    def stride(self) -> int:
        return self.plan.keys.stride

    @property
    def window(self) -> int:
        return self.plan.window


Streams = Mapping[str, Mapping[str, Spec]]
"""Source -> batch key -> spec."""


def graph(study: Study, streams: Streams) -> tuple[dict[str, Node | None], list[Problem]]:
    """What each level reads, from which source; none for one that is wrong, and for what reads such a one. And what is wrong."""
    nodes: dict[str, Node | None] = {}
    problems: list[Problem] = []
    given = {label: streams.get(label) for label in study.order["data"]}
    for label in study.order["levels"]:
        nodes[label] = None
        try:
            if label in study.levels:
                found = _node(label, study.levels[label], {name: nodes[name] for name in nodes if name != label}, given)
                if label in _sure(given[found.source]):
                    said = f"source {found.source!r} has a stream of that name; call the level otherwise"
                    raise Misfit(Problem(f"levels.{label}", said))
                nodes[label] = found
        except Misfit as misfit:
            problems.append(misfit.problem)
        except Lost:
            continue
    return nodes, problems


def _node(label: str, plan: LevelPlan, before: dict[str, Node | None], given: Mapping[str, Mapping[str, Spec] | None]) -> Node:
    keys, path = plan.keys, f"levels.{label}"
    if keys.data is not None and keys.data not in given:
        raise Misfit(
            Problem(f"{path}.data", f"no source {keys.data!r}{nearest(keys.data, given)} (there are: {listed(given)})")
        )
    named = [keys.reads] if isinstance(keys.reads, str) else keys.reads
    if named == []:
        raise Misfit(Problem(f"{path}.reads", "an empty list: name a level or a batch key"))
    if named is None:
        return _following(label, plan, before, given)
    above = next((_sure(before[name]).source for name in named if name in before), None)
    source = keys.data or above or next(iter(given), "")
    allowed = [*before, *_sure(given.get(source))]
    for name in named:
        if name not in allowed:
            said = f"no level before {label!r} and no stream of {source!r} is called {name!r}{nearest(name, allowed)}"
            raise Misfit(Problem(f"{path}.reads", f"{said} (there are: {listed(allowed)})"))
        if name in before:
            _sure(before[name])
    return Node(label, source, tuple(named), plan)


def _following(
    label: str, plan: LevelPlan, before: dict[str, Node | None], given: Mapping[str, Mapping[str, Spec] | None]
) -> Node:
    """A level that does not say what it reads: the level before it, or the main stream of a source."""
    if before:
        last = _sure(next(reversed(before.values())))
        if plan.keys.data in (None, last.source):
            return Node(label, last.source, (last.label,), plan)
    source = plan.keys.data or next(iter(given), "")
    return Node(label, source, (next(iter(_sure(given.get(source)))),), plan)


T = TypeVar("T")


def _sure(found: T | None) -> T:
    if found is None:
        raise Lost
    return found


class Composer:
    """Makes the levels in order, each from the spec of what it reads; everything that does not fit is noted."""

    def __init__(self, study: Study, streams: Streams) -> None:
        self.study, self.streams = study, streams
        nodes, self.problems = graph(study, streams)
        self.nodes = {label: node for label, node in nodes.items() if node is not None}
        self.maker = Maker(study)
        self.levels: dict[str, Any] = {}
        lost = set(nodes) - set(self.nodes)
        with limited(LARGEST):
            for label, node in self.nodes.items():
                if not lost & {*node.reads, node.plan.keys.condition}:
                    self._compose(label, node)
                if label not in self.levels:
                    lost.add(label)

    def _compose(self, label: str, node: Node) -> None:
        try:
            below = self.below(node, node.source)
            self._enough(node, self.frames(node, 1), 1, below)
            made = self.maker.make(node.plan.component, replace(below, condition=self._condition(node), latent=0))
            self._keeps_the_clock(node, made, below)
            self._enough(node, self.frames(node, made.needs), made.needs, below)
            self._crop(node, made)
        except Misfit as misfit:
            self.problems.append(misfit.problem)
        except Lost:
            return
        else:
            self.levels[label] = made

    def spec(self, name: str, source: str) -> Spec:
        """Of a level, or a stream, on a source (a level can be read on another source than it is trained on)."""
        if name not in self.nodes:
            if name not in self.streams[source]:
                raise Misfit(Problem(f"data.{source}", f"gives no stream {name!r} (there are: {listed(self.streams[source])})"))
            return self.streams[source][name]
        own: Spec = self.levels[name].spec
        node = self.nodes[name]
        if source == node.source:
            return own
        there, here = self.below(node, source), self.below(node, node.source)
        if _shapes((there,)) != _shapes((here,)):
            said = f"level {name!r} reads {_seen(here)}, and from source {source!r} it would read {_seen(there)}"
            raise Misfit(Problem(f"data.{source}", said))
        return replace(own, ticks=there.ticks)

    def below(self, node: Node, source: str) -> Spec:
        """What a level reads, in windows at its own clock."""
        specs = [self.spec(name, source) for name in node.reads]
        if len({spec.ticks for spec in specs}) > 1:
            shown = "; ".join(f"{name} at {some(map(str, spec.ticks))}" for name, spec in zip(node.reads, specs, strict=True))
            raise Misfit(Problem(f"levels.{node.label}.reads", f"what is read together must keep the same ticks: {shown}"))
        joined = specs[0] if len(specs) == 1 else Spec(ticks=specs[0].ticks, actions=specs[0].actions, parts=tuple(specs))
        return window_spec(joined, node.stride, node.window)

    def frames(self, node: Node, steps: int) -> tuple[int, str]:
        """How many steps of the source `steps` own steps need, and the sum that shows it."""
        needed = (steps - 1) * node.stride + node.window
        shown = f"({steps} - 1) * {node.stride} + {node.window} = {needed}"
        below = self.nodes.get(node.reads[0])
        if below is None:
            return needed, f"{shown} {node.reads[0]}"
        further, sum_below = self.frames(below, needed)
        return further, f"{shown} steps of {below.label!r}, which need {sum_below}"

    def given(self, node: Node) -> int:
        """How many steps of the stream below all others a sample of the level's source has."""
        source = node.source
        while node.reads[0] in self.nodes:
            node = self.nodes[node.reads[0]]
        return self.spec(node.reads[0], source).steps

    def _enough(self, node: Node, needed: tuple[int, str], steps: int, below: Spec) -> None:
        have = below.steps
        if have >= steps:
            return
        given = self.given(node)
        said = f"{steps} own step{'s' * (steps > 1)} need {needed[1]}; source {node.source!r} gives {given}"
        raise Misfit(Problem(f"levels.{node.label}", f"too few steps: {said}, which make {have} own steps"))

    def _keeps_the_clock(self, node: Node, made: Any, below: Spec) -> None:
        """One state a window, which says when the window ends."""
        if made.spec.ticks != below.ticks:
            said = f"gives states at the ticks {list(made.spec.ticks)} from windows that end at {list(below.ticks)}"
            rule = (
                "a level gives one state a window, at its last tick, or the future would leak; time within can be in the grid"
            )
            raise Misfit(Problem(f"levels.{node.label}", f"{said}: {rule}"))

    def _crop(self, node: Node, made: Any) -> None:
        crop = node.plan.keys.crop
        if crop is not None and not made.needs <= crop <= made.spec.steps:
            said = f"at least {made.needs} (what the level needs) and at most {made.spec.steps} (what it has)"
            raise Misfit(Problem(f"levels.{node.label}.crop", f"{said}; written: {crop}"))

    def _condition(self, node: Node) -> int:
        name = node.plan.keys.condition
        if name is None:
            return 0
        allowed = [*self.levels, *self.streams[node.source]]
        if name not in allowed:
            said = f"no level before and no stream of {node.source!r} is called {name!r}{nearest(name, allowed)}"
            raise Misfit(Problem(f"levels.{node.label}.condition", f"{said} (there are: {listed(allowed)})"))
        width = self.spec(name, node.source).width
        if not width:
            raise Misfit(Problem(f"levels.{node.label}.condition", f"{name!r} gives no tokens: a condition is a vector a step"))
        return width


# --- sources ----------------------------------------------------------------------------------------------------------


def make_sources(study: Study) -> dict[str, Dataset]:
    """The datasets of a study; what they refuse is noted in its problems."""
    maker = Maker(study)
    made: dict[str, Dataset] = {}
    for label, plan in study.sources.items():
        seed = study.seed if plan.keys.seed is None else plan.keys.seed
        try:
            made[label] = maker.make(plan.component, seed)
        except Misfit as misfit:
            study.problems.append(misfit.problem)
    return made


def streams_of(sources: Mapping[str, Dataset]) -> dict[str, Mapping[str, Spec]]:
    """What can be read of each source."""
    return {label: dataset.streams for label, dataset in sources.items()}
