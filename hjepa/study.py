"""A YAML study -> a validated Study.

A study names components by their registry names and nothing else: no import paths, no evaluation, no YAML tags. Everything that is
wrong is said at once, each with its path, what was written, what is allowed and the nearest match.
"""

from __future__ import annotations

import collections.abc
import inspect
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

from hjepa import contracts
from hjepa.contracts import Build, Count, Positive, Whole
from hjepa.errors import Mistake, Problem, StudyMistake, listed, nearest
from hjepa.registry import Registry, unmet
from hjepa.schedules import Schedule

_LABEL = re.compile(r"[a-z][a-z0-9_]*")
LARGEST, DEEPEST, WORD = 100_000, 100, 63
"""Values in a study, one within the other, and bits of a whole number."""


# --- the keys that are not a component's ------------------------------------------------------------------------------


class Keys(BaseModel):
    """A mapping of a study whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceKeys(Keys):
    """What the loader owns of every source."""

    batch: Count = Field(default=64, description="samples a step, over all processes")
    split: Literal["train", "valid", "test"] = Field(default="train", description="the samples that are trained on")
    every: Count = Field(default=1, description="a batch every so many steps; levels that read the source rest in between")
    seed: int | None = Field(default=None, description="of the source; the study's by default")


class LevelKeys(Keys):
    """What the stack owns of every level."""

    data: str | None = Field(default=None, description="the source that is read; the first by default")
    reads: str | list[str] | None = Field(
        default=None, description="a level, a batch key, or a list; the level before by default"
    )
    stride: Count = Field(default=1, description="steps of what is read between two own steps")
    window: Count | None = Field(default=None, description="steps of what is read that one own step sees; `stride` by default")
    crop: Count | None = Field(default=None, description="train on a keyed window of so many own steps")
    gradient: Literal["flow", "stop"] = Field(default="flow", description="whether gradient flows to what is read")
    frozen: bool = Field(default=False, description="never trained")
    weights: str | None = Field(default=None, description="RUN or RUN/LEVEL whose weights it starts from")
    weight: Schedule = Field(default=Schedule.of(1.0), description="of the level in the sum that is trained; may be scheduled")
    condition: str | None = Field(default=None, description="a batch key, or a level whose states condition the prediction")


class Optimizer(BaseModel):
    """A torch optimizer by name, and its own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "adamw"
    lr: Schedule = Schedule.of(1e-3)
    weight_decay: Schedule = Schedule.of(0.0)

    @property
    def options(self) -> dict[str, Any]:
        """What is neither the name nor scheduled."""
        return dict(self.model_extra or {})


class Train(Keys):
    """How the stack is trained."""

    steps: Count = Field(default=1000, description="of the optimizer")
    optimizer: Optimizer = Field(default=Optimizer(), description="a torch optimizer by name, with its options")
    groups: dict[str, dict[str, Any]] = Field(default={}, description="parameter name pattern -> optimizer options of its own")
    clip: Positive | None = Field(default=None, description="largest norm of the gradient")
    log_every: Count = Field(default=10, description="steps between two journal records")
    diagnose_every: Count = Field(default=20, description="steps between two looks at collapse, on held-out samples")
    checkpoint_every: Count = Field(default=100, description="steps between two checkpoints")
    keep: int = Field(default=2, ge=2, description="checkpoints that are kept")
    workers: Whole = Field(default=0, description="processes that read data; the result does not depend on it")
    device: str = Field(default="auto", description="auto, cpu or cuda")
    track: bool = Field(default=True, description="mirror the journal to MLflow")


class Evaluate(Keys):
    """What probes look at."""

    samples: Count = Field(default=1024, description="of the train split, to fit on, and at most as many of the test split")
    batch: Count = Field(default=128, description="samples encoded at once")


# --- components -------------------------------------------------------------------------------------------------------


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
        shown = {key: self.plain[key] if key in self.plain else _written(value) for key, value in self.options.items()}
        return {"name": self.name, **shown}


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


@dataclass(frozen=True)
class LevelPlan:
    """A level of a study: the stack's keys, and the level."""

    keys: LevelKeys
    component: Component

    @property
    def window(self) -> int:
        return self.keys.window or self.keys.stride


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
    problems: list[Problem] = field(default_factory=list)
    order: dict[str, list[str]] = field(default_factory=lambda: {"data": [], "levels": [], "probes": []})
    """Every label as written, those of what could not be understood too: what follows from that is no mistake of its own."""

    def resolved(self) -> dict[str, Any]:
        """The study with every default, as plain YAML data; reading it again gives the same study."""
        return {
            "seed": self.seed,
            "data": {label: _owned(plan, transforms=_written(plan.transforms)) for label, plan in self.sources.items()},
            "levels": {label: _owned(plan) for label, plan in self.levels.items()},
            "train": self.train.model_dump(mode="json"),
            "evaluate": self.evaluate.model_dump(mode="json"),
            "probes": {label: probe.written() for label, probe in self.probes.items()},
        }

    def complain(self) -> None:
        """Raises everything that is wrong, at once."""
        if self.problems:
            raise StudyMistake(self.name, self.problems)


def _owned(plan: SourcePlan | LevelPlan, **more: Any) -> dict[str, Any]:
    written = plan.component.written()
    return {"name": written.pop("name"), **plan.keys.model_dump(mode="json"), **more, **written}


# --- reading ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that is written twice is an error, and so is a tag."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, f"a study has no tags; written: {event.tag!r}", event.start_mark)
        return super().compose_node(parent, index)  # type: ignore[no-any-return, no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is written twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-4 for a word; everybody who writes it means the number
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _yaml(text: str, where: str) -> Any:
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise Mistake(f"{where} is not valid YAML{place}: {getattr(error, 'problem', None) or error}") from None
    except (RecursionError, ValueError) as error:
        raise Mistake(f"{where} is not valid YAML: {error}") from None
    _bounded(found, where)
    return found


def _bounded(tree: Any, where: str) -> None:
    """No more than `LARGEST` values, however often an alias repeats them, `DEEPEST` deep, and whole numbers of 64 bits."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    for _ in range(LARGEST):
        if not waiting:
            return
        path, value = waiting.pop()
        if len(path) > DEEPEST:
            break
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*path, key), item) for key, item in pairs]
        elif isinstance(value, int) and value.bit_length() > WORD:
            at = ".".join(str(part) for part in path)
            raise Mistake(f"{where}: {at}: a whole number has at most {WORD} bits; this one has {value.bit_length()}")
    raise Mistake(f"{where} holds more than {LARGEST} values, or is more than {DEEPEST} deep, or holds itself")


def folders() -> list[Path]:
    """Where studies are looked for by name: here, then in the checkout that hjepa is installed from."""
    return [Path.cwd() / "studies", Path(__file__).resolve().parent.parent / "studies"]


def locate(reference: str, beside: Path | None = None) -> Path:
    """The file of a study: a path, or a name in one of `folders`."""
    direct = [Path(reference), *([beside / reference] if beside else [])]
    places = [*([beside] if beside else []), *folders()]
    named = [folder / name for folder in places for name in (reference, f"{reference}.yaml")]
    for path in (*direct, *named):
        if os.path.isfile(path):  # false, and no error, for what cannot be a path
            return path
    known = sorted({path.stem for folder in folders() if folder.is_dir() for path in folder.glob("*.yaml")})
    hint = f" (there are: {listed(known)})" if known else " (studies come with hjepa's source tree, in its folder studies/)"
    raise Mistake(f"no study {reference!r}{nearest(reference, known)}{hint}")


def read(reference: str, overrides: Iterable[str], registry: Registry) -> Study:
    """The study of that path or name. What is wrong with it is in `problems`; only what cannot be read at all is raised."""
    path = locate(reference)
    raw, text = _with_bases(path, ())
    problems: list[Problem] = []
    for override in overrides:
        _override(raw, override, problems)
    reader = _Reader(registry, Study(name=path.stem, text=text, problems=problems))
    return reader.study(raw)


def parse(raw: Mapping[str, Any], registry: Registry, name: str = "study") -> Study:
    """The same, from plain data."""
    return _Reader(registry, Study(name=name, text=yaml.safe_dump(dict(raw), sort_keys=False))).study(dict(raw))


def _with_bases(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], str]:
    """The mapping of a file, merged onto those that it extends."""
    path = path.resolve()
    if path in seen:
        raise Mistake(f"{path}: `extends` leads back to itself ({' -> '.join(str(p.name) for p in (*seen, path))})")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{path} cannot be read: {error}") from None
    raw = _yaml(text, str(path))
    if not isinstance(raw, dict):
        raise Mistake(f"{path}: a study is a mapping; written: {_short(raw)}")
    base = raw.pop("extends", None)
    if base is None:
        return raw, text
    if not isinstance(base, str):
        raise Mistake(f"{path}: extends: the name or path of a study is needed; written: {_short(base)}")
    try:
        found = locate(base, beside=path.parent)
    except Mistake as error:
        raise Mistake(f"{path}: extends: {error}") from None
    below, below_text = _with_bases(found, (*seen, path))
    return merged(below, raw), f"{text}\n# --- extends {base} ---\n{below_text}"


def merged(below: Any, above: Any) -> Any:
    """Mappings merge by key; a component of another name replaces the one below it. A bare name below is a component."""
    if isinstance(below, str) and isinstance(above, dict):
        below = {"name": below}
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    names = [_name_of(value) for value in (below, above)]
    if all(names) and names[0] != names[1]:
        return above
    return {**below, **{key: merged(below[key], value) if key in below else value for key, value in above.items()}}


def _name_of(value: dict[str, Any]) -> str | None:
    return value["name"] if isinstance(value.get("name"), str) else None


def _override(raw: dict[str, Any], text: str, problems: list[Problem]) -> None:
    """`levels.frame.encoder.width=128` into the mapping."""
    key, equals, written = text.partition("=")
    if not equals or not key:
        problems.append(Problem(text, "an override is written key=value, as in levels.frame.encoder.width=128"))
        return
    try:
        value = _yaml(written, f"the value of {key}")
    except Mistake as error:
        problems.append(Problem(key, str(error)))
        return
    parts = key.split(".")
    at: Any = raw
    for position, part in enumerate(parts[:-1]):
        below = _step_into(at, part)
        if below is None:
            problems.append(Problem(key, f"{'.'.join(parts[: position + 1])} holds no keys of its own"))
            return
        at = below
    if isinstance(at, list):
        if not _is_index(parts[-1], at):
            problems.append(Problem(key, f"there is no item {parts[-1]!r}: the list has {len(at)}, counted from 0"))
            return
        at[int(parts[-1])] = merged(at[int(parts[-1])], value)
    else:
        at[parts[-1]] = value


def _is_index(part: str, items: list[Any]) -> bool:
    return part.isdecimal() and int(part) < len(items)


def _step_into(at: Any, part: str) -> Any:
    """The mapping or list under `part`; a bare name becomes the component that it means. None where there is nothing to set."""
    if isinstance(at, list):
        if not _is_index(part, at):
            return None
        key: Any = int(part)
    else:
        key = part
        at.setdefault(key, {})
    if isinstance(at[key], str):
        at[key] = {"name": at[key]}
    if at[key] is None:
        at[key] = {}
    return at[key] if isinstance(at[key], dict | list) else None


# --- validation -------------------------------------------------------------------------------------------------------


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


@dataclass
class _Reader:
    """Turns plain data into a Study, and notes everything that is wrong on the way."""

    registry: Registry
    into: Study
    steps: int = 1

    TOP = ("seed", "data", "levels", "train", "evaluate", "probes")

    def problem(self, path: str, message: str) -> None:
        self.into.problems.append(Problem(path, message))

    def study(self, raw: dict[Any, Any]) -> Study:
        into = self.into
        self._unknown(raw, self.TOP, "")
        into.seed = self._plain(int, raw.get("seed", 0), "seed", 0)
        steps = raw["train"].get("steps") if isinstance(raw.get("train"), dict) else None
        self.steps = steps if isinstance(steps, int) and steps > 0 else Train().steps
        into.train = self._keys(Train, raw.get("train"), "train") or Train()
        into.evaluate = self._keys(Evaluate, raw.get("evaluate"), "evaluate") or Evaluate()
        for label, value in self._labelled(raw, "data", needed=True):
            self._source(label, value)
        for label, value in self._labelled(raw, "levels", needed=True):
            self._level(label, value)
        for label, value in self._labelled(raw, "probes"):
            probe = self._component(value, contracts.Probe, f"probes.{label}")
            if isinstance(probe, Component):
                into.probes[label] = probe
        self._shares()
        return into

    def _unknown(self, raw: Mapping[Any, Any], allowed: Iterable[str], path: str) -> None:
        allowed = list(allowed)
        for key in raw:
            if key not in allowed:
                where = f"{path}.{key}" if path else str(key)
                self.problem(where, f"unknown key{nearest(str(key), allowed)} (allowed: {listed(allowed)})")

    def _labelled(self, raw: dict[Any, Any], key: str, needed: bool = False) -> Iterator[tuple[str, Any]]:
        value = raw.get(key)
        if value is None and not needed:
            return
        if not isinstance(value, dict) or (needed and not value):
            self.problem(key, f"a mapping label -> component is needed; written: {_short(value)}")
            return
        for label, item in value.items():
            self.into.order[key].append(str(label))
            if isinstance(label, str) and _LABEL.fullmatch(label):
                yield label, item
            else:
                self.problem(f"{key}.{label}", "a label is made of small letters, digits and underscores")

    def _keys(self, model: type[Any], raw: Any, path: str) -> Any:
        """A model of fixed keys; None where it is wrong, which is noted."""
        if raw is None:
            raw = {}
        if not isinstance(raw, dict):
            self.problem(path, f"a mapping is needed; written: {_short(raw)}")
            return None
        try:
            return model.model_validate({str(key): value for key, value in raw.items()}, context={"steps": self.steps})
        except ValidationError as error:
            self._pydantic(error, path, list(model.model_fields))
            return None

    def _pydantic(self, error: ValidationError, path: str, allowed: list[str]) -> None:
        for one in error.errors(include_url=False):
            where = ".".join([part for part in (path, *(str(p) for p in one["loc"])) if part])
            if one["type"] == "extra_forbidden":
                self.problem(where, f"unknown key{nearest(str(one['loc'][-1]), allowed)} (allowed: {listed(allowed)})")
            else:
                message = one["msg"].removeprefix("Value error, ")
                message = message[0].lower() + message[1:] if message.startswith("Input") else message
                written = "" if "; written: " in message else f"; written: {_short(one['input'])}"
                self.problem(where, message + written)

    def _plain(self, annotation: Any, raw: Any, path: str, fallback: Any) -> Any:
        """A value that holds no component."""
        try:
            return _adapter(annotation).validate_python(raw, context={"steps": self.steps})
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

    def _component(self, raw: Any, protocol: type, path: str, owned: Iterable[str] = ()) -> Component | Shared | None:
        kind: str = protocol.kind  # type: ignore[attr-defined]
        if isinstance(raw, str):
            raw = {"name": raw}
        installed = listed(self.registry.names(kind))
        if not isinstance(raw, dict):
            self.problem(path, f"name one {kind}, or write {{name: ...}} (installed: {installed}); written: {_short(raw)}")
            return None
        if "share" in raw:
            return self._shared(raw, path, protocol)
        name = raw.get("name")
        if not isinstance(name, str):
            self.problem(f"{path}.name", f"name one {kind} (installed: {installed}); written: {_short(name or raw)}")
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
            self.problem(f"{path}.share", f"the path of a component is needed; written: {_short(written)}")
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
            if not _holds_build(option.annotation) and len(self.into.problems) == known:
                plain[key] = _adapter(option.annotation).dump_python(values[key], mode="json")
        if len(self.into.problems) > known:
            return None
        return Component(kind, name, path, found, values, plain)

    def _value(self, annotation: Any, raw: Any, path: str) -> Any:
        """An option: plain, a component, or a list or mapping of components."""
        if not _holds_build(annotation):
            return self._plain(annotation, raw, path, None)
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            made = self._value(arguments[0], raw, path)
            return made if made is None else self._plain(typing.Annotated[Any, *arguments[1:]], made, path, None)
        if origin is Build:
            return self._component(raw, arguments[0], path)
        if origin in (typing.Union, types.UnionType):
            return None if raw is None else self._value(next(a for a in arguments if _holds_build(a)), raw, path)
        if origin in (dict, collections.abc.Mapping):
            if isinstance(raw, dict):
                return {str(key): self._value(arguments[1], item, f"{path}.{key}") for key, item in raw.items()}
            self.problem(path, f"a mapping label -> component is needed; written: {_short(raw)}")
        elif isinstance(raw, list | tuple):
            return [self._value(arguments[0], item, f"{path}.{position}") for position, item in enumerate(raw)]
        else:
            self.problem(path, f"a list of components is needed; written: {_short(raw)}")
        return None

    def _shares(self) -> None:
        """Every `{share: PATH}` leads to a component that can do what is needed there, and that it is no part of."""
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
        elif node.path.startswith(f"{node.target}."):
            self.problem(f"{node.path}.share", f"{node.target} cannot be a part of itself")


def _divided(raw: Any, owned: list[str]) -> tuple[dict[str, Any], Any]:
    """The keys that the framework owns, and the rest, which is the component's."""
    if not isinstance(raw, dict):
        return {}, raw
    return {k: v for k, v in raw.items() if k in owned}, {k: v for k, v in raw.items() if k not in owned}


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a component."""

    annotation: Any
    default: Any


def options_of(found: type) -> dict[str, Option]:
    """The keyword-only parameters of `__init__`. Mistake where their annotations say nothing at run time."""
    try:
        hints = typing.get_type_hints(found.__init__, include_extras=True)  # type: ignore[misc]
        options = {
            name: Option(hints.get(name, Any), parameter.default)
            for name, parameter in inspect.signature(found).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        for option in options.values():
            if not _holds_build(option.annotation):
                _adapter(option.annotation)
    except (NameError, TypeError, ValueError, PydanticUserError) as error:
        said = str(error).splitlines()[0]
        raise Mistake(
            f"the annotations of {found.__module__}:{found.__qualname__} cannot be used at run time: {said}"
        ) from error
    return options


def _holds_build(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Build or any(_holds_build(argument) for argument in typing.get_args(annotation))


@cache
def _cached_adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return TypeAdapter(annotation)
