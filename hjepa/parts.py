"""The parts of a study, understood: components with their options, sources, levels, and how it acts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hjepa.keys import CostKeys, Keys, LevelKeys, PlanKeys, SourceKeys


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
class Planning:
    """How a study acts: in which world, by which planner, and what counts."""

    keys: PlanKeys
    environment: Component
    planner: Component
    costs: dict[str, tuple[CostKeys, Component]]

    def written(self) -> dict[str, Any]:
        """As a study would say it, with every default."""
        costs = {label: _owned(keys, cost) for label, (keys, cost) in self.costs.items()}
        own = {"environment": self.environment.written(), "planner": self.planner.written(), "costs": costs}
        return self.keys.model_dump(mode="json") | own


def _owned(keys: Keys, component: Component, **more: Any) -> dict[str, Any]:
    """A component, and beside its options what hjepa owns there."""
    written = component.written()
    return {"name": written.pop("name"), **keys.model_dump(mode="json"), **more, **written}
