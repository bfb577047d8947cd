"""A world by its name and by what it is told, as a study says it, where there is no study."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hjepa import registry
from hjepa.contracts import Build, Environment
from hjepa.errors import listed, nearest
from hjepa.options import adapter, options_of


class Named(Build[Environment]):
    """An environment that is not made yet. Its options are checked by their types; ValueError says which of them is wrong, and why."""

    def __init__(self, name: str, told: Mapping[str, Any]) -> None:
        self.name, self.path = name, name
        self.found = registry.load().find("environment", name).load()
        self.told = checked(name, self.found, told)

    def __call__(self, *neighbours: Any) -> Environment:
        made: Environment = self.found(*neighbours, **self.told)
        return made


def checked(name: str, found: type, told: Mapping[str, Any]) -> dict[str, Any]:
    """What is told, as the types of a component's options have it."""
    options = options_of(found)
    for key in told:
        if key not in options:
            raise ValueError(f"{name} has no option {key!r}{nearest(key, options)} (it has: {listed(options)})")
    for key, option in options.items():
        if option.default is inspect.Parameter.empty and key not in told:
            raise ValueError(f"{name} needs the option {key!r}")
    return {key: _valid(f"{name}: {key}", options[key].annotation, value) for key, value in told.items()}


def _valid(where: str, annotation: Any, value: Any) -> Any:
    try:
        return adapter(annotation).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{where}: {error.errors(include_url=False)[0]['msg']}; written: {value!r}") from None
