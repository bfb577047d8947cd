"""Finding plugins, looking components up, and saying what went wrong.

A plugin is what stands behind an entry point of the group `hjepa`. Each is loaded on its own: one that is broken is reported and
leaves the others working. Registration names `"module:Class"` and imports nothing, so that listing is quick; the class is
imported, and held against its protocol, when it is first used.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata as metadata
import importlib.util
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pluggy

from hjepa import hookspecs
from hjepa.contracts import KINDS
from hjepa.errors import Mistake, listed, nearest

GROUP = "hjepa"
ALLOW_LIST = "HJEPA_PLUGINS"
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Plugin:
    """One entry point, and how loading it went."""

    name: str
    distribution: str
    version: str
    error: str = ""

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} (plugin {self.name})"


@dataclass(frozen=True)
class Entry:
    """A registered component; its class is imported by `load`."""

    kind: str
    name: str
    target: str
    plugin: Plugin
    replaces: str = ""

    @property
    def file(self) -> str:
        """Where the component is written, found without importing it."""
        try:
            spec = importlib.util.find_spec(self.target.split(":")[0])
        except (ImportError, ValueError, AttributeError):
            spec = None
        return (spec.origin or "") if spec else ""

    def __str__(self) -> str:
        return f"{self.plugin.distribution} {self.plugin.version}, {self.file or self.target}"

    def load(self) -> type:
        """The class. Mistake where it cannot be imported or lacks what its kind needs."""
        module, attribute = self.target.split(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except BaseException as error:
            _let_go(error)
            said = f"{type(error).__name__}: {error}"
            raise Mistake(
                f"{self.kind} {self.name!r} of {self.plugin} cannot be imported from {self.target}: {said}"
            ) from error
        lacking = [unmet(found, protocol) for protocol in KINDS[self.kind]]
        if all(lacking):
            fewest = min(lacking, key=len)
            raise Mistake(f"{self.kind} {self.name!r} ({self.target}, {self.plugin}) is not a {self.kind}: {'; '.join(fewest)}")
        return found  # type: ignore[no-any-return]


class Components:
    """What a plugin's `register` is given. Nothing counts until `register` has returned without an error."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.entries: list[Entry] = []

    def add(self, kind: str, name: str, target: str, *, replaces: str = "") -> None:
        """Name one component. `replaces="DISTRIBUTION"` says that it is meant to stand in for that distribution's."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}{nearest(str(kind), KINDS)} (allowed: {listed(KINDS)})")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{kind} {name!r}: a name is made of small letters, digits and underscores")
        if not isinstance(target, str) or not _TARGET.fullmatch(target):
            raise ValueError(f'{kind} {name!r}: a target is written "module:Class"; written: {target!r}')
        if any((kind, name) == (entry.kind, entry.name) for entry in self.entries):
            raise ValueError(f"{kind} {name!r} is added twice")
        self.entries.append(Entry(kind, name, target, self.plugin, replaces))


@dataclass
class Registry:
    """All that is installed: components by kind and name, the plugins, and what failed."""

    plugins: list[Plugin] = field(default_factory=list)
    claims: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    manager: pluggy.PluginManager = field(default_factory=lambda: _manager())

    @property
    def failures(self) -> list[Plugin]:
        return [plugin for plugin in self.plugins if plugin.error]

    def names(self, kind: str) -> list[str]:
        return sorted(name for claimed, name in self.claims if claimed == kind)

    def entries(self) -> Iterator[Entry]:
        """Every claim, in the order of kind and name."""
        for key in sorted(self.claims):
            yield from self.claims[key]

    def conflicts(self) -> list[str]:
        """A message for each name that several plugins claim."""
        return [_conflict(*key, claims) for key, claims in sorted(self.claims.items()) if len(_standing(claims)) > 1]

    def find(self, kind: str, name: str) -> Entry:
        """The component of that name, or a Mistake that says what there is, and which plugins failed."""
        standing = _standing(self.claims.get((kind, name), []))
        if len(standing) == 1:
            return standing[0]
        if standing:
            raise Mistake(_conflict(kind, name, standing))
        known = self.names(kind)
        failed = "".join(f"; plugin {p.name} ({p.distribution} {p.version}) failed: {p.error}" for p in self.failures)
        raise Mistake(f"unknown {kind} {name!r}{nearest(name, known)} (installed: {listed(known)}){failed}")

    def call(self, hook: str, say: Callable[[str], None], **facts: Any) -> None:
        """A lifecycle hook of every plugin that has it; one that fails is named, and training goes on."""
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            wanted = {name: facts[name] for name in implementation.argnames}
            try:
                implementation.function(**wanted)
            except Exception as error:
                say(f"plugin {implementation.plugin_name}: {hook} failed: {type(error).__name__}: {error}")


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def _standing(claims: list[Entry]) -> list[Entry]:
    """The claims that no other claim replaces; all of them where each is replaced by another."""
    replaced = {entry.replaces for entry in claims if entry.replaces}
    return [entry for entry in claims if entry.plugin.distribution not in replaced] or claims


def _conflict(kind: str, name: str, claims: list[Entry]) -> str:
    owners = " and ".join(sorted(str(entry) for entry in claims))
    return (
        f"{kind} {name!r} is registered by both {owners}; leave one out with --no-plugin, "
        'or let one say replaces="DISTRIBUTION" if it is meant to replace the other'
    )


def load(blocked: Iterable[str] = (), points: Iterable[metadata.EntryPoint] | None = None) -> Registry:
    """Everything that is installed, whatever the order in which it is found.

    `blocked` plugins are never imported; where the environment variable HJEPA_PLUGINS is set, only those that it names are.
    """
    registry = Registry()
    allowed = [word.strip() for word in os.environ.get(ALLOW_LIST, "").split(",") if word.strip()]
    found = metadata.entry_points(group=GROUP) if points is None else points
    unique = {(_distribution(point)[0], point.name, point.value): point for point in found}
    blocked = set(blocked)
    for key in sorted(unique):
        if not blocked & {key[1], key[0]} and (not allowed or {key[1], key[0]} & set(allowed)):
            _load_one(registry, unique[key])
    _refuse_unknown(blocked | set(allowed), unique)
    return registry


def _refuse_unknown(wanted: set[str], unique: dict[tuple[str, str, str], metadata.EntryPoint]) -> None:
    known = {name for distribution, point, _ in unique for name in (distribution, point)}
    for name in sorted(wanted - known):
        raise Mistake(f"no plugin is called {name!r}{nearest(name, known)} (installed: {listed(sorted(known))})")


def _distribution(point: metadata.EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "0")


def _load_one(registry: Registry, point: metadata.EntryPoint) -> None:
    """One plugin, staged: its components count only if all of it went well."""
    distribution, version = _distribution(point)
    plugin = Plugin(point.name, distribution, version)
    components = Components(plugin)
    try:
        module = point.load()
        _refuse_misspelled_hooks(registry.manager, module)
        name = registry.manager.register(module, f"{distribution}/{point.name}")
        if not registry.manager.get_hookcallers(module):
            raise ValueError(f"{point.value} implements no hook of hjepa ({name}); mark one with @hookimpl")
        for implementation in registry.manager.hook.register.get_hookimpls():
            if implementation.plugin is module:
                implementation.function(components)
    except BaseException as error:
        _let_go(error)
        registry.manager.set_blocked(f"{distribution}/{point.name}")
        registry.plugins.append(Plugin(point.name, distribution, version, f"{type(error).__name__}: {error}"))
        return
    registry.plugins.append(plugin)
    for entry in components.entries:
        registry.claims.setdefault((entry.kind, entry.name), []).append(entry)


def _let_go(error: BaseException) -> None:
    """Somebody else's code may raise SystemExit on import, or what it likes: its failure, not ours. Ctrl-C is the person's."""
    if type(error) is KeyboardInterrupt:
        raise error


def _refuse_misspelled_hooks(manager: pluggy.PluginManager, module: object) -> None:
    known = [name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), f"{hookspecs.PROJECT}_spec")]
    for name in dir(module):
        if manager.parse_hookimpl_opts(module, name) is not None and name not in known:
            raise ValueError(f"unknown hook {name!r}{nearest(name, known)} (allowed: {listed(known)})")


# --- holding a class against its protocol ----------------------------------------------------------------------------


def unmet(found: Any, protocol: type) -> list[str]:
    """What `found` lacks of `protocol`, in words; empty where it fits."""
    if not inspect.isclass(found):
        return [f"it is {type(found).__name__}, not a class"]
    optional = getattr(protocol, "optional", ())
    wanted = {name: method for name, method in vars(protocol).items() if inspect.isfunction(method) and _counts(name)}
    lacking = []
    for name, method in wanted.items():
        own = _method(found, name)
        if own is None and name not in optional:
            lacking.append(f"it has no `{_spoken(found, name)}`")
        elif own is not None:
            lacking += _misfit(_spoken(found, name), own, method)
    one_of = getattr(protocol, "one_of", ())
    if one_of and not any(_method(found, name) for name in one_of):
        lacking.append("it has none of " + ", ".join(f"`{name}`" for name in one_of))
    return lacking


def _counts(name: str) -> bool:
    return name in ("__call__", "__len__") or not name.startswith("_")


def _is_module(found: type) -> bool:
    """An nn.Module, told without importing torch."""
    return any(base.__module__.startswith("torch.nn.modules.module") for base in found.__mro__)


def _spoken(found: type, name: str) -> str:
    return "forward" if name == "__call__" and _is_module(found) else name


def _method(found: type, name: str) -> Callable[..., Any] | None:
    """The method as its author wrote it; what nn.Module itself brings along does not count."""
    name = _spoken(found, name)
    for base in found.__mro__:
        if name in vars(base) and not base.__module__.startswith(("torch.nn.modules.module", "builtins", "typing")):
            method = vars(base)[name]
            return method if callable(method) else getattr(found, name)
    return None


def _misfit(name: str, own: Callable[..., Any], method: Callable[..., Any]) -> list[str]:
    """The protocol's parameters that the author's method does not take under their names."""
    taken = inspect.signature(own).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return []
    wanted = list(inspect.signature(method).parameters)[1:]
    missing = [parameter for parameter in wanted if parameter not in taken]
    if not missing:
        return []
    return [f"`{name}({', '.join(list(taken)[1:])})` does not take {', '.join(missing)}"]


# --- what a component can be told, read without importing it ----------------------------------------------------------


def static_options(entry: Entry) -> dict[str, dict[str, str | None]]:
    """Option -> its type and default, as written in the source."""
    if not entry.file.endswith(".py"):
        return {}
    with open(entry.file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    wanted = entry.target.split(":")[1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == wanted:
            return _init_options(node)
    return {}


def _init_options(node: ast.ClassDef) -> dict[str, dict[str, str | None]]:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            pairs = zip(method.args.kwonlyargs, method.args.kw_defaults, strict=True)
            return {
                argument.arg: {
                    "type": ast.unparse(argument.annotation) if argument.annotation else None,
                    "default": ast.unparse(default) if default else None,
                }
                for argument, default in pairs
            }
    return {}
