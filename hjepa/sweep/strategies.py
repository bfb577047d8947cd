"""Samplers and pruners of Optuna by the names that a study gives them, with what they can be told."""

from __future__ import annotations

import functools
import inspect
import operator
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hjepa.errors import Problem, listed, nearest
from hjepa.options import adapter
from hjepa.randomness import Key
from hjepa.search import Search, Strategy
from hjepa.written import shown

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

PLAIN = {"int": int, "float": float, "bool": bool, "str": str, "None": None}
"""The types of what a study can tell a strategy; what is told by objects stays as Optuna has it."""


def sampler(search: Search, seed: int, number: int) -> BaseSampler:
    """What proposes trial `number`. It draws from (seed, number), so that no two workers draw the same, however many they are."""
    from optuna import samplers

    found, options = getattr(samplers, search.sampler.names[search.sampler.name]), search.sampler.options
    # the points of one sequence are shared out by the storage, so whoever asks must have the same sequence
    drawn = Key.of(seed, "search") if search.sampler.name == "qmc" else Key.of(seed, "search", number)
    return found(seed=int(drawn.word) % (1 << 32), **options)


def pruner(search: Search, steps: int) -> BasePruner:
    """What is asked at every report of a training of so many steps."""
    from optuna import pruners

    found, options = getattr(pruners, search.pruner.names[search.pruner.name]), search.pruner.options
    if "max_resource" in inspect.signature(found).parameters:
        options = {"min_resource": every(search, steps), "max_resource": steps, **options}
    return found(**options)


def every(search: Search, steps: int) -> int:
    """Steps between two reports."""
    return search.every or max(1, steps // 10)


def problems(search: Search) -> list[Problem]:
    """What is wrong with the options of sampler and pruner."""
    import optuna

    asked = {"sampler": (search.sampler, optuna.samplers), "pruner": (search.pruner, optuna.pruners)}
    return [problem for key, (told, module) in asked.items() for problem in _problems(f"search.{key}", told, module)]


def _problems(path: str, told: Strategy, module: Any) -> list[Problem]:
    found = getattr(module, told.names[told.name])
    allowed = _options(found)
    noted: list[Problem] = []
    for name, value in told.options.items():
        if name not in allowed:
            noted.append(Problem(f"{path}.{name}", f"unknown key{nearest(name, allowed)} (allowed: {listed(allowed)})"))
            continue
        try:
            adapter(allowed[name]).validate_python(value, strict=True)
        except ValidationError as error:
            noted.append(Problem(f"{path}.{name}", f"{error.errors()[0]['msg'].lower()}; written: {shown(value)}"))
    if noted:
        return noted
    try:
        found(**told.options)
    except (ValueError, TypeError) as error:
        return [Problem(path, str(error))]
    return []


def _options(found: type) -> dict[str, Any]:
    """What a study can tell a strategy: its parameters of plain types, without the seed, which is the study's."""
    written = {
        name: _words(parameter.annotation) for name, parameter in inspect.signature(found).parameters.items() if name != "seed"
    }
    plain = {name: words for name, words in written.items() if set(words) <= set(PLAIN) and not name.startswith("warn_")}
    return {name: functools.reduce(operator.or_, (PLAIN[word] for word in words)) for name, words in plain.items()}


def _words(annotation: Any) -> list[str]:
    return (annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)).split(" | ")
