"""What recipes that were run with several seeds reached where they acted: the tasks of all seeds together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from hjepa.compare.digest import Digest
from hjepa.compare.seeds import Repeated
from hjepa.planning import kept
from hjepa.planning.kept import Kept, Pooled


class Acted(NamedTuple):
    """One recipe."""

    recipe: Repeated
    places: tuple[int, ...]
    """Of the runs that acted in the same tasks."""
    tasks: int
    """In each."""
    policies: dict[str, Pooled]


def acted(told: Sequence[Digest], recipes: Iterable[Repeated]) -> Iterator[Acted]:
    """Of each recipe the runs that acted in the same tasks and world as the first of them that did, where they are several."""
    for recipe in recipes:
        found = {place: one for place in recipe.places if (one := _kept(told[place])) is not None}
        asked = next(((one.world, one.tasks) for one in found.values()), None)
        alike = {place: one for place, one in found.items() if (one.world, one.tasks) == asked}
        if len(alike) > 1:
            yield Acted(recipe, tuple(alike), len(found[next(iter(alike))].tasks), kept.pooled(list(alike.values())))


def _kept(run: Digest) -> Kept | None:
    return kept.read(run.acted or run.path)
