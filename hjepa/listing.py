"""Plugins and components, listed: who gives them, where they are written, what they can be told; and what failed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hjepa.contracts import KINDS
from hjepa.errors import Mistake, listed, nearest
from hjepa.registry import Entry, Registry, static_options

if TYPE_CHECKING:
    from rich.console import Console


def chosen(registry: Registry, kind: str | None, name: str | None) -> list[Entry]:
    """All components, those of a kind, or one. Mistake where there is no such kind."""
    if kind is not None and kind not in KINDS:
        raise Mistake(f"unknown kind {kind!r}{nearest(kind, KINDS)} (allowed: {listed(KINDS)})")
    if kind is not None and name is not None:
        return [registry.find(kind, name)]
    return [entry for entry in registry.entries() if kind in (None, entry.kind)]


def imported(entries: list[Entry]) -> dict[str, str]:
    """What is wrong with each component that cannot be used."""
    broken = {}
    for entry in entries:
        try:
            entry.load()
        except Mistake as error:
            broken[f"{entry.kind} {entry.name}"] = str(error)
    return broken


def told(registry: Registry, entries: list[Entry], broken: Mapping[str, str]) -> dict[str, Any]:
    """As one object, with what failed."""
    components = [
        {
            "kind": entry.kind,
            "name": entry.name,
            "file": entry.file,
            "distribution": f"{entry.plugin.distribution} {entry.plugin.version}",
            "options": static_options(entry),
        }
        for entry in entries
    ]
    failed = [
        {"plugin": plugin.name, "distribution": f"{plugin.distribution} {plugin.version}", "error": plugin.error}
        for plugin in registry.failures
    ]
    return {"components": components, "failed": failed, "conflicts": registry.conflicts(), "broken": dict(broken)}


def show(
    registry: Registry,
    entries: list[Entry],
    broken: Mapping[str, str],
    detailed: bool,
    console: Console,
    say: Callable[[str], None],
) -> None:
    """One line a component, by kind; with its options where `detailed`; and what failed."""
    width = max((len(entry.name) for entry in entries), default=0)
    kind = ""
    for entry in entries:
        if entry.kind != kind:
            kind = entry.kind
            console.print(kind, style="bold", highlight=False)
        wrong = "  [broken]" if f"{entry.kind} {entry.name}" in broken else ""
        where = f"{entry.plugin.distribution} {entry.plugin.version}  {_shortened(entry.file)}{wrong}"
        console.print(f"  {entry.name:<{width}}  {where}", highlight=False, markup=False, soft_wrap=True)
        for option, about in static_options(entry).items() if detailed else ():
            default = "" if about["default"] is None else f" = {about['default']}"
            console.print(f"      {option}: {about['type']}{default}", highlight=False, markup=False, soft_wrap=True)
    for message in [*registry.conflicts(), *broken.values()]:
        say(message)
    for plugin in registry.failures:
        say(f"{plugin} failed: {plugin.error}")


def _shortened(file: str) -> str:
    return os.path.relpath(file) if file.startswith(os.getcwd()) else file
