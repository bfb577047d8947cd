"""Levels that learn what two views of the same thing have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    components.add("level", "content", "hjepa_content.content:Content")
