"""A YAML study -> a validated Study.

A study names components by their registry names and nothing else: no import paths, no evaluation, no YAML tags. Everything that is
wrong is said at once, each with its path, what was written, what is allowed and the nearest match.
"""

from __future__ import annotations

import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from pydantic import ValidationError

from hjepa import contracts, search
from hjepa.contracts import Build
from hjepa.errors import Mistake, Problem, StudyMistake, listed, nearest
from hjepa.keys import POLICIES, TAKEN, CostKeys, Evaluate, LevelKeys, PlanKeys, SourceKeys, Train, WayKeys
from hjepa.options import adapter, holds_build, options_of
from hjepa.parts import Component, Given, LevelPlan, Planning, Shared, SourcePlan, Variant
from hjepa.registry import Registry, unmet
from hjepa.search import Search
from hjepa.written import data_of, locate, merged, shown

_LABEL = re.compile(r"[a-z][a-z0-9_]*")


@dataclass
class Study:
    """What a person asked for. Where `problems` is not empty, it holds only what could be understood."""

    name: str
    text: str
    seed: int = 0
    sources: dict[str, SourcePlan] = field(default_factory=dict)
    levels: dict[str, LevelPlan] = field(default_factory=dict)
    probes: dict[str, Component] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    search: Search | None = None
    plan: Planning | None = None
    problems: list[Problem] = field(default_factory=list)
    order: dict[str, list[str]] = field(default_factory=lambda: {"data": [], "levels": [], "probes": []})
    """Every label as written, those of what could not be understood too: what follows from that is no mistake of its own."""

    def resolved(self) -> dict[str, Any]:
        """The study with every default, as plain YAML data; reading it again gives the same study."""
        more = {} if self.search is None else {"search": self.search.model_dump(mode="json")}
        more |= {} if self.plan is None else {"plan": self.plan.written()}
        return {
            "seed": self.seed,
            "data": {label: source.written() for label, source in self.sources.items()},
            "levels": {label: level.written() for label, level in self.levels.items()},
            "train": self.train.model_dump(mode="json"),
            "evaluate": self.evaluate.model_dump(mode="json"),
            "probes": {label: probe.written() for label, probe in self.probes.items()},
            **more,
        }

    def complain(self) -> None:
        """Raises everything that is wrong, at once."""
        if self.problems:
            raise StudyMistake(self.name, self.problems)


# --- reading ----------------------------------------------------------------------------------------------------------


def read(reference: str, overrides: Iterable[str], registry: Registry) -> Study:
    """The study of that path or name. What is wrong with it is in `problems`; only what cannot be read at all is raised."""
    path = locate(reference)
    problems: list[Problem] = []
    raw, text = data_of(path, overrides, problems)
    return _Reader(registry, Study(name=path.stem, text=text, problems=problems)).study(raw)


def parse(raw: Mapping[str, Any], registry: Registry, name: str = "study") -> Study:
    """The same, from plain data."""
    return _Reader(registry, Study(name=name, text=yaml.safe_dump(dict(raw), sort_keys=False))).study(dict(raw))


# --- validation -------------------------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """Turns plain data into a Study, and notes everything that is wrong on the way."""

    registry: Registry
    into: Study
    steps: int = 1

    TOP = ("seed", "data", "levels", "train", "evaluate", "probes", "search", "plan")

    def problem(self, path: str, message: str) -> None:
        self.into.problems.append(Problem(path, message))

    def study(self, raw: dict[Any, Any]) -> Study:
        into = self.into
        self._unknown(raw, self.TOP, "")
        into.seed = self._plain(int, raw.get("seed", 0), "seed", 0)
        steps = raw["train"].get("steps") if isinstance(raw.get("train"), dict) else None
        self.steps = steps if isinstance(steps, int) and steps > 0 else Train().steps
        into.train = self._keys(Train, raw.get("train"), "train") or self._understood(Train, raw.get("train"))
        into.evaluate = self._keys(Evaluate, raw.get("evaluate"), "evaluate") or self._understood(Evaluate, raw.get("evaluate"))
        learns = "plan" not in raw  # where the world itself is the model, nothing has to be learned
        for label, value in self._labelled(raw, "data", needed=learns):
            self._source(label, value)
        for label, value in self._labelled(raw, "levels", needed=learns):
            self._level(label, value)
        for label, value in self._labelled(raw, "probes"):
            probe = self._component(value, contracts.Probe, f"probes.{label}")
            if isinstance(probe, Component):
                into.probes[label] = probe
        if raw.get("search") is not None:
            into.search = search.read(raw["search"], self._keys)
        if raw.get("plan") is not None:
            into.plan = self._plan(raw["plan"])
        self._shares()
        return into

    def _unknown(self, raw: Mapping[Any, Any], allowed: Iterable[str], path: str) -> None:
        allowed = list(allowed)
        for key in raw:
            if key not in allowed:
                where = f"{path}.{key}" if path else str(key)
                self.problem(where, f"unknown key{nearest(str(key), allowed)} (allowed: {listed(allowed)})")

    def _labelled(
        self, raw: dict[Any, Any], key: str, needed: bool = False, at: str = "", of: str = "component"
    ) -> Iterator[tuple[str, Any]]:
        value, at = raw.get(key), at or key
        if value is None and not needed:
            return
        if not isinstance(value, dict) or (needed and not value):
            self.problem(at, f"a mapping label -> {of} is needed; written: {shown(value)}")
            return
        for label, item in value.items():
            self.into.order.setdefault(at, []).append(str(label))
            if isinstance(label, str) and _LABEL.fullmatch(label):
                yield label, item
            else:
                self.problem(f"{at}.{label}", "a label is made of small letters, digits and underscores")

    def _keys(self, model: type[Any], raw: Any, path: str) -> Any:
        """A model of fixed keys; None where it is wrong, which is noted."""
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            self.problem(path, f"a mapping is needed; written: {shown(raw)}")
            return None
        try:
            return model.model_validate({str(key): value for key, value in raw.items()}, context={"steps": self.steps})
        except ValidationError as error:
            self._pydantic(error, path, list(model.model_fields))
            return None

    def _understood(self, model: type[Any], raw: Any) -> Any:
        """What is right in a mapping of fixed keys that is wrong as a whole, so that what follows from it is looked at too."""
        right = {}
        for key, value in raw.items() if isinstance(raw, dict) else ():
            with suppress(ValidationError):
                model.model_validate({str(key): value}, context={"steps": self.steps})
                right[str(key)] = value
        return model.model_validate(right, context={"steps": self.steps})

    def _pydantic(self, error: ValidationError, path: str, allowed: list[str]) -> None:
        for one in error.errors(include_url=False):
            where = ".".join([part for part in (path, *(str(p) for p in one["loc"])) if part])
            if one["type"] == "extra_forbidden":
                self.problem(where, f"unknown key{nearest(str(one['loc'][-1]), allowed)} (allowed: {listed(allowed)})")
            else:
                message = one["msg"].removeprefix("Value error, ")
                message = message[0].lower() + message[1:] if message.startswith("Input") else message
                written = "" if "; written: " in message else f"; written: {shown(one['input'])}"
                self.problem(where, message + written)

    def _plain(self, annotation: Any, raw: Any, path: str, fallback: Any) -> Any:
        """A value that holds no component."""
        try:
            return adapter(annotation).validate_python(raw, context={"steps": self.steps})
        except ValidationError as error:
            self._pydantic(error, path, [])
            return fallback

    def _source(self, label: str, raw: Any) -> None:
        path = f"data.{label}"
        own, rest = _divided(raw, [*SourceKeys.model_fields, "transforms"])
        transforms = own.pop("transforms", None) or []
        keys = self._keys(SourceKeys, own, path)
        component = self._component(rest, contracts.Dataset, path, owned=[*SourceKeys.model_fields, "transforms"])
        made = self._value(list[Build[contracts.Transform]], transforms, f"{path}.transforms")
        if keys and isinstance(component, Component) and isinstance(made, list):
            self.into.sources[label] = SourcePlan(keys, made, component)

    def _level(self, label: str, raw: Any) -> None:
        path = f"levels.{label}"
        own, rest = _divided(raw, list(LevelKeys.model_fields))
        keys = self._keys(LevelKeys, own, path)
        component = self._component(rest, contracts.Level, path, owned=list(LevelKeys.model_fields))
        if keys and isinstance(component, Component):
            self.into.levels[label] = LevelPlan(keys, component)

    def _plan(self, raw: Any) -> Planning | None:
        owned = [*PlanKeys.model_fields, "environment", "planner", "costs", "beside"]
        own, rest = _divided(raw, owned)
        if not isinstance(raw, dict):
            self.problem("plan", f"a mapping is needed; written: {shown(raw)}")
            return None
        self._unknown(rest, owned, "plan")
        keys = self._keys(PlanKeys, {key: value for key, value in own.items() if key in PlanKeys.model_fields}, "plan")
        world = self._component(own.get("environment"), contracts.Environment, "plan.environment")
        planner = self._planner(own.get("planner"), "plan")
        costs = self._costs(own, "plan")
        beside = {
            f"plan.beside.{label}": self._given(label, value, own.get("planner"), planner)
            for label, value in self._labelled(own, "beside", at="plan.beside", of="keys of `plan` that are different there")
        }
        if not (keys and isinstance(world, Component) and isinstance(planner, Component) and costs is not None):
            return None
        plan = Planning("plan", keys, planner, costs, world)
        ways = [Variant.of(plan, path, given) for path, given in beside.items() if given is not None]
        return replace(plan, beside={way.path.removeprefix("plan.beside."): way for way in ways})

    def _given(self, label: str, raw: Any, below: Any, planner: Component | Shared | None) -> Given | None:
        """Another way to plan; `below` and `planner`: that of the plan, as written, and understood."""
        path, known = f"plan.beside.{label}", len(self.into.problems)
        if label in POLICIES:
            self.problem(path, f"somebody acts under that name already ({listed(POLICIES)}); call it otherwise")
        if (last := label.rpartition("_")[2]) in TAKEN:
            said = f"its scores would have the names of others: no label ends in {last!r} ({listed(TAKEN)})"
            self.problem(path, f"{said}; call it otherwise")
        if not isinstance(raw, dict):
            self.problem(path, f"a mapping is needed; written: {shown(raw)}")
            return None
        self._unknown(raw, [*WayKeys.model_fields, "planner", "costs"], path)
        keys = self._keys(WayKeys, {key: value for key, value in raw.items() if key in WayKeys.model_fields}, path)
        found = {key: getattr(keys, key) for key in raw if key in WayKeys.model_fields} if keys else {}
        own = raw.get("planner")
        own = {"name": own} if isinstance(own, str) else own
        if "planner" in raw:
            whole = merged(below, own)
            # where that of the plan is wrong, this is said of it alone, and not of each that builds on it
            found["planner"] = None if planner is None and whole is not own else self._planner(whole, path)
        if "costs" in raw:
            found["costs"] = self._costs(raw, path)
        return Given(found, list(own or ())) if len(self.into.problems) == known else None

    def _planner(self, raw: Any, path: str) -> Component | Shared | None:
        return self._component(raw, contracts.Planner, f"{path}.planner")

    def _costs(self, raw: dict[str, Any], path: str) -> dict[str, tuple[CostKeys, Component]] | None:
        labelled = self._labelled(raw, "costs", at=f"{path}.costs")
        costs = {label: self._cost(f"{path}.costs.{label}", value) for label, value in labelled}
        found = {label: cost for label, cost in costs.items() if cost is not None}
        return found if len(found) == len(costs) else None

    def _cost(self, path: str, raw: Any) -> tuple[CostKeys, Component] | None:
        own, rest = _divided(raw, list(CostKeys.model_fields))
        keys = self._keys(CostKeys, own, path)
        component = self._component(rest, contracts.CostTerm, path, owned=list(CostKeys.model_fields))
        return (keys, component) if keys and isinstance(component, Component) else None

    def _component(self, raw: Any, protocol: type, path: str, owned: Iterable[str] = ()) -> Component | Shared | None:
        kind: str = protocol.kind  # type: ignore[attr-defined]
        if isinstance(raw, str):
            raw = {"name": raw}
        installed = listed(self.registry.names(kind))
        if not isinstance(raw, dict):
            self.problem(path, f"name one {kind}, or write {{name: ...}} (installed: {installed}); written: {shown(raw)}")
            return None
        if "share" in raw:
            return self._shared(raw, path, protocol)
        name = raw.get("name")
        if not isinstance(name, str):
            near = "" if "name" in raw else nearest("name", map(str, raw))
            written = shown(name if "name" in raw else raw)
            self.problem(f"{path}.name", f"name one {kind} (installed: {installed}); written: {written}{near}")
            return None
        try:
            found = self.registry.find(kind, name).load()
        except Mistake as error:
            self.problem(f"{path}.name", str(error))
            return None
        lacking = unmet(found, protocol)
        if lacking:
            needed = f"{protocol.__name__} is needed here, and {kind} {name!r} is none"
            self.problem(f"{path}.name", f"{needed}: {'; '.join(lacking)}")
            return None
        return self._with_options(found, kind, name, path, raw, list(owned))

    def _shared(self, raw: dict[Any, Any], path: str, protocol: type) -> Shared | None:
        self._unknown(raw, ["share"], path)
        written = raw["share"]
        if path.count(".") < 2 or not path.startswith("levels."):
            self.problem(f"{path}.share", "only a component within a level can be one with another")
        elif not isinstance(written, str):
            self.problem(f"{path}.share", f"the path of a component is needed; written: {shown(written)}")
        else:
            target = written.removeprefix("levels.")
            slot = path.split(".", 2)[2]
            return Shared(path, f"levels.{target}" if "." in target else f"levels.{target}.{slot}", protocol)
        return None

    def _with_options(
        self, found: type, kind: str, name: str, path: str, raw: dict[Any, Any], owned: list[str]
    ) -> Component | None:
        known = len(self.into.problems)
        try:
            options = options_of(found)
        except Mistake as error:
            self.problem(path, f"{kind} {name!r}: {error}")
            return None
        for key in {"name", "share", *owned} & set(options):
            self.problem(f"{path}.{key}", f"{kind} {name!r} has an option of that name, but the key belongs to hjepa")
        self._unknown(raw, ["name", *options, *owned], path)
        values: dict[str, Any] = {}
        plain: dict[str, Any] = {}
        for key, option in options.items():
            if key not in raw and option.default is inspect.Parameter.empty:
                self.problem(f"{path}.{key}", f"{kind} {name!r} needs this option")
                continue
            value = raw.get(key, option.default)
            values[key] = self._value(option.annotation, value, f"{path}.{key}")
            if not holds_build(option.annotation) and len(self.into.problems) == known:
                plain[key] = adapter(option.annotation).dump_python(values[key], mode="json")
        if len(self.into.problems) > known:
            return None
        return Component(kind, name, path, found, values, plain)

    def _value(self, annotation: Any, raw: Any, path: str) -> Any:
        """An option: plain, a component, or a list or mapping of components."""
        if not holds_build(annotation):
            return self._plain(annotation, raw, path, None)
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            made = self._value(arguments[0], raw, path)
            return made if made is None else self._plain(typing.Annotated[Any, *arguments[1:]], made, path, None)
        if origin is Build:
            return self._component(raw, arguments[0], path)
        if origin in (typing.Union, types.UnionType):
            return None if raw is None else self._value(next(a for a in arguments if holds_build(a)), raw, path)
        if origin in (dict, collections.abc.Mapping):
            if isinstance(raw, dict):
                return {str(key): self._value(arguments[1], item, f"{path}.{key}") for key, item in raw.items()}
            self.problem(path, f"a mapping label -> component is needed; written: {shown(raw)}")
        elif isinstance(raw, list | tuple):
            return [self._value(arguments[0], item, f"{path}.{position}") for position, item in enumerate(raw)]
        else:
            self.problem(path, f"a list of components is needed; written: {shown(raw)}")
        return None

    def _shares(self) -> None:
        """Every `{share: PATH}` leads to a component that can do what is needed there."""
        everything = [node for plan in self.into.levels.values() for node in plan.component.walk()]
        real = {node.path: node for node in everything if isinstance(node, Component)}
        lost = set(self.into.order["levels"]) - set(self.into.levels)
        for node in everything:
            if isinstance(node, Shared) and node.target.split(".")[1] not in lost:
                self._share(node, real)

    def _share(self, node: Shared, real: dict[str, Component]) -> None:
        target = real.get(node.target)
        if target is None:
            there = [path for path, one in real.items() if one.kind == node.protocol.kind]  # type: ignore[attr-defined]
            said = f"no component at {node.target!r}{nearest(node.target, there)} (there are: {listed(sorted(there))})"
            self.problem(f"{node.path}.share", said)
        elif lacking := unmet(target.found, node.protocol):
            said = f"{node.protocol.__name__} is needed here, and {node.target} is none: {'; '.join(lacking)}"
            self.problem(f"{node.path}.share", said)


def _divided(raw: Any, owned: list[str]) -> tuple[dict[str, Any], Any]:
    """The keys that the framework owns, and the rest, which is the component's."""
    if not isinstance(raw, dict):
        return {}, raw
    return {k: v for k, v in raw.items() if k in owned}, {k: v for k, v in raw.items() if k not in owned}
