"""The parts of a study, understood: components with their options, sources, levels, and how it acts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hjepa.keys import ORACLE, PLANNED, CostKeys, Keys, LevelKeys, PlanKeys, SourceKeys, WayKeys


@dataclass(frozen=True)
class Shared:
    """`{share: PATH}`: the same instance as the component at that path."""

    path: str
    target: str
    protocol: type

    def written(self) -> dict[str, str]:
        return {"share": self.target}


@dataclass(frozen=True)
class Component:
    """A validated component of a study: its class, and its options, those that are components included."""

    kind: str
    name: str
    path: str
    found: type
    options: dict[str, Any]
    plain: dict[str, Any]
    """The options that are not components, as a study would say them."""

    def children(self) -> Iterator[Component | Shared]:
        """The components that are its options."""
        yield from _components_in(self.options.values())

    def walk(self) -> Iterator[Component | Shared]:
        """Itself, and all within it."""
        yield self
        for child in self.children():
            if isinstance(child, Component):
                yield from child.walk()
            else:
                yield child

    def written(self) -> dict[str, Any]:
        """As a study would say it, with every default."""
        options = {key: self.plain[key] if key in self.plain else _written(value) for key, value in self.options.items()}
        return {"name": self.name, **options}


def _components_in(values: Iterable[Any]) -> Iterator[Component | Shared]:
    for value in values:
        if isinstance(value, Component | Shared):
            yield value
        elif isinstance(value, list):
            yield from _components_in(value)
        elif isinstance(value, dict):
            yield from _components_in(value.values())


def _written(value: Any) -> Any:
    if isinstance(value, Component | Shared):
        return value.written()
    if isinstance(value, list):
        return [_written(item) for item in value]
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class SourcePlan:
    """A source of a study: the loader's keys, its transforms, and the dataset."""

    keys: SourceKeys
    transforms: list[Component | Shared]
    component: Component

    def written(self) -> dict[str, Any]:
        """As a study would say it, with every default."""
        return _owned(self.keys, self.component, transforms=_written(self.transforms))


@dataclass(frozen=True)
class LevelPlan:
    """A level of a study: the stack's keys, and the level."""

    keys: LevelKeys
    component: Component

    @property
    def window(self) -> int:
        return self.keys.window or self.keys.stride

    def written(self) -> dict[str, Any]:
        """As a study would say it, with every default."""
        return _owned(self.keys, self.component)


@dataclass(frozen=True)
class Way:
    """A way to plan: with which model and how far ahead, by which planner, and what counts."""

    path: str
    keys: WayKeys
    planner: Component
    costs: dict[str, tuple[CostKeys, Component]]

    @property
    def exact(self) -> list[str]:
        """Those of the levels that plan whose model is the world itself."""
        return [label for label in self.keys.exact if label in self.keys.horizon]

    def written(self) -> dict[str, Any]:
        """As a study would say it, with every default."""
        costs = {label: _owned(keys, cost) for label, (keys, cost) in self.costs.items()}
        return self.keys.model_dump(mode="json") | {"planner": self.planner.written(), "costs": costs}


@dataclass(frozen=True)
class Given:
    """What a study says of another way to plan: the keys of its plan that are different there, understood."""

    keys: dict[str, Any]
    options: list[str]
    """Those of the planner that are different, its name included."""


@dataclass(frozen=True)
class Variant(Way):
    """Another way to plan in the same tasks, with one model: what was learned, or the world itself."""

    given: Given

    @staticmethod
    def of(plan: Planning, path: str, given: Given) -> Variant:
        """What it does not say is as in the plan."""
        different = {key: value for key, value in given.keys.items() if key in WayKeys.model_fields}
        horizon = different.get("horizon", {} if "oracle" in different else plan.keys.horizon)
        keys = _with_one_model(plan.keys.model_copy(update=different | {"horizon": horizon}), bool(horizon))
        planner, costs = given.keys.get("planner", plan.planner), given.keys.get("costs", plan.costs)
        return Variant(path, keys, planner, costs, given)

    def said(self, plan: Planning) -> dict[str, Any]:
        """As a study would say it beside this plan: what it was said to do otherwise, with every default of that."""
        whole = self.written()
        if self.planner.name == plan.planner.name:
            whole["planner"] = {option: whole["planner"][option] for option in self.given.options}
        return {key: whole[key] for key in self.given.keys}


@dataclass(frozen=True)
class Planning(Way):
    """How a study acts: in which world, and in which ways."""

    keys: PlanKeys
    environment: Component
    beside: dict[str, Variant] = field(default_factory=dict)

    def ways(self) -> dict[str, Way]:
        """By name: in the world itself, in what was learned, and in other ways beside these."""
        models = {ORACLE: self.keys.oracle, PLANNED: self.keys.horizon}
        own = {
            name: Way(self.path, _with_one_model(self.keys, name == PLANNED), self.planner, self.costs)
            for name, model in models.items()
            if model
        }
        return own | self.beside

    def written(self) -> dict[str, Any]:
        """As a study would say it, with every default."""
        beside = {"beside": {label: variant.said(self) for label, variant in self.beside.items()}} if self.beside else {}
        return {**super().written(), "environment": self.environment.written(), **beside}


def _with_one_model(keys: WayKeys, learned: bool) -> WayKeys:
    return keys.model_copy(update={"oracle" if learned else "horizon": {}})


def _owned(keys: Keys, component: Component, **more: Any) -> dict[str, Any]:
    """A component, and beside its options what hjepa owns there."""
    written = component.written()
    return {"name": written.pop("name"), **keys.model_dump(mode="json"), **more, **written}
