"""Any torch optimizer by name, with groups by parameter name; learning rate and weight decay are pure functions of the step."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hjepa.errors import Problem, listed, nearest
from hjepa.schedules import Schedule
from hjepa.study import Study

SCHEDULED = ("lr", "weight_decay")


def available() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimizer of torch that takes a step from gradients alone, by its name in small letters."""
    found = {name.lower(): value for name, value in vars(torch.optim).items() if inspect.isclass(value)}
    wanted = {name: value for name, value in found.items() if issubclass(value, torch.optim.Optimizer)}
    return {name: value for name, value in wanted.items() if name not in ("optimizer", "lbfgs", "sparseadam")}


def problems(study: Study) -> list[Problem]:
    """What is wrong with the optimizer of a study."""
    name, found = study.train.optimizer.name, available()
    if name not in found:
        said = f"unknown optimizer {name!r}{nearest(name, found)} (torch has: {listed(sorted(found))})"
        return [Problem("train.optimizer.name", said)]
    allowed = [key for key in inspect.signature(found[name]).parameters if key != "params"]
    noted = [
        _unknown(f"train.optimizer.{key}", name, key, allowed) for key in study.train.optimizer.options if key not in allowed
    ]
    for key in SCHEDULED:
        noted += _negative(f"train.optimizer.{key}", getattr(study.train.optimizer, key))
    for pattern, options in study.train.groups.items():
        for key, value in options.items():
            path = f"train.groups.{pattern}.{key}"
            if key not in allowed:
                noted.append(_unknown(path, name, key, allowed))
            elif key in SCHEDULED:
                noted += _unreadable(path, value)
    return noted or _refused(study, found[name])


def _unknown(path: str, name: str, key: str, allowed: list[str]) -> Problem:
    return Problem(path, f"{name} has no such option{nearest(key, allowed)} (it has: {listed(allowed)})")


def _unreadable(path: str, value: Any) -> list[Problem]:
    try:
        return _negative(path, Schedule.read(value, steps=1))
    except ValueError as error:
        return [Problem(path, str(error))]


def _negative(path: str, schedule: Schedule) -> list[Problem]:
    return [Problem(path, "it is not negative")] if min(schedule.first, schedule.last) < 0 else []


def _refused(study: Study, found: type[torch.optim.Optimizer]) -> list[Problem]:
    """What the optimizer itself says of its options, when it is made and when it takes a step."""
    options, groups = study.train.optimizer.options, study.train.groups.items()
    noted = _refusal("train.optimizer", found, options)
    return noted or [p for pattern, own in groups for p in _refusal(f"train.groups.{pattern}", found, options | _plain(own))]


def _refusal(path: str, found: type[torch.optim.Optimizer], options: dict[str, Any]) -> list[Problem]:
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.zeros(2, 2)
    try:
        _made(found, [{"params": [parameter]}], options, 1e-3).step()
    except Exception as error:
        return [Problem(path, f"{found.__name__} refuses its options: {_said(error)}")]
    return []


def _said(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """What is not scheduled."""
    return {key: value for key, value in options.items() if key not in SCHEDULED}


def _made(found: type[Any], groups: list[dict[str, Any]], options: dict[str, Any], lr: float) -> torch.optim.Optimizer:
    ready = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return found(groups, lr=lr, **ready)


@dataclass(frozen=True)
class Scheduled:
    """An optimizer, and what its groups follow."""

    optimizer: torch.optim.Optimizer
    schedules: list[dict[str, Schedule]]

    def set(self, step: int) -> None:
        """Learning rate and weight decay of every group at this step."""
        for group, schedules in zip(self.optimizer.param_groups, self.schedules, strict=True):
            group.update({key: schedule(step) for key, schedule in schedules.items()})


def make(study: Study, module: nn.Module) -> Scheduled:
    """The optimizer of a study; one group for each pattern, and for each whether weight decays.

    Parameters of one dimension (biases, norms) do not decay. The last pattern that fits a name counts.
    """
    groups, schedules = _groups(study, module)
    found, options = available()[study.train.optimizer.name], study.train.optimizer.options
    if "fused" in inspect.signature(found).parameters and not {"fused", "foreach"} & set(options):
        options["fused"] = True  # one pass over the parameters, on CPU and GPU
    return Scheduled(_made(found, groups, options, 1e-3), schedules)


def misfits(study: Study, module: nn.Module) -> list[Problem]:
    """Why the optimizer of a study cannot train a module: nothing is trained, a group has no member, or it refuses a parameter."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not names:
        return [Problem("levels", "there is nothing to train: no level that is not frozen has parameters")]
    shown = listed(names[:4]) + ", ..." * (len(names) > 4)
    said = f"no trained parameter has a name like that (there are: {shown})"
    noted = [Problem(f"train.groups.{pattern}", said) for pattern in study.train.groups if not fnmatch.filter(names, pattern)]
    settings = study.train.optimizer
    try:
        _made(available()[settings.name], _groups(study, module)[0], settings.options, 1e-3)
    except Exception as error:
        noted.append(Problem("train.optimizer.name", f"{settings.name} cannot train this: {_said(error)}"))
    return noted


def _groups(study: Study, module: nn.Module) -> tuple[list[dict[str, Any]], list[dict[str, Schedule]]]:
    """Parameters with the options of their own, and what each group follows."""
    found = available()[study.train.optimizer.name]
    sorted_out: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = (_pattern(name, study.train.groups), parameter.ndim > 1)
            sorted_out.setdefault(key, []).append(parameter)
    groups: list[dict[str, Any]] = []
    schedules: list[dict[str, Schedule]] = []
    for (pattern, decays), members in sorted_out.items():
        own = study.train.groups.get(pattern, {})
        groups.append({"params": members, **_plain(own)})
        schedules.append(_schedules(study, found, own, decays))
    return groups, schedules


def _pattern(name: str, patterns: Iterable[str]) -> str:
    return next((pattern for pattern in reversed(list(patterns)) if fnmatch.fnmatchcase(name, pattern)), "")


def _schedules(study: Study, found: type[Any], own: dict[str, Any], decays: bool) -> dict[str, Schedule]:
    steps, settings = study.train.steps, study.train.optimizer
    result = {"lr": Schedule.read(own.get("lr", settings.lr), steps)}
    if "weight_decay" in inspect.signature(found).parameters:
        decay = Schedule.read(own.get("weight_decay", settings.weight_decay), steps)
        result["weight_decay"] = decay if decays else Schedule.of(0.0)
    return result
