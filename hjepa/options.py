"""What a component can be told: the keyword-only parameters of its `__init__`, read at run time."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import PydanticUserError, TypeAdapter

from hjepa.contracts import Build
from hjepa.errors import Mistake


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
            if not holds_build(option.annotation):
                adapter(option.annotation)
    except (NameError, TypeError, ValueError, PydanticUserError) as error:
        said = str(error).splitlines()[0]
        raise Mistake(
            f"the annotations of {found.__module__}:{found.__qualname__} cannot be used at run time: {said}"
        ) from error
    return options


def holds_build(annotation: Any) -> bool:
    """Whether it is a component, or holds some."""
    return typing.get_origin(annotation) is Build or any(holds_build(argument) for argument in typing.get_args(annotation))


@cache
def _cached_adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """What turns plain data into a value of that type."""
    try:
        return _cached_adapter(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return TypeAdapter(annotation)
