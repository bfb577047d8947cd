"""The `plan` of a study, at work: its tasks are done by its planner in what its levels have learned, and by others beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hjepa import checkpoint, control, making, runs
from hjepa.compose import Maker, Misfit
from hjepa.contracts import ActionSpace, Batch, CostTerm, Environment, Planner, PlanningProblem, Spec
from hjepa.errors import Mistake, Problem, listed, nearest
from hjepa.keys import RANDOM, STRAIGHT
from hjepa.parts import Component, Way
from hjepa.planning import episodes, exact
from hjepa.planning.episodes import Anything, Planned, Policy, Record, Straight
from hjepa.randomness import Key
from hjepa.registry import Registry
from hjepa.stack import Stack, load_state
from hjepa.study import Study, parse, read
from hjepa.written import changed, folders

WORLD = "world"
"""Whose states a cost sees that counts where the world itself is the model."""


@dataclass(frozen=True)
class Acted:
    """What came of one policy."""

    record: Record
    scores: dict[str, float]
    policy: Policy


class Setting:
    """The world of a study, its tasks, and what plans there."""

    def __init__(self, study: Study, stack: Stack | None, device: torch.device, run: runs.Run | None = None) -> None:
        if study.plan is None:
            raise Mistake(f"{study.name} does not say how to act: it has no `plan`")
        self.study, self.stack, self.device, self.run = study, stack, device, run
        self.plan, self.keys, self.maker = study.plan, study.plan.keys, Maker(study)
        self.world: Environment = self._made(self.plan.environment, 0)
        self.actions = ActionSpace(self.world.actions.low.to(device), self.world.actions.high.to(device))
        self.ways = self.plan.ways()
        for way in self.ways.values():
            self._planner(way)  # what cannot work is said before anybody acts
        self.tasks = self._tasks().to(self.device)
        self.key = Key.of(self.study.seed, "plan", device=self.device).fold(torch.arange(len(self.tasks), device=self.device))
        for way in self.ways.values():
            if way.exact or len(way.keys.horizon) > 1:
                self._tried(way)

    def _made(self, component: Component, *neighbours: Any) -> Any:
        try:
            return self.maker.make(component, *neighbours)
        except Misfit as misfit:
            raise Mistake(str(misfit.problem)) from misfit

    def _tasks(self) -> Tensor:
        tasks = self.keys.tasks
        if isinstance(tasks, str):
            return read_tasks(self.world, tasks)
        key = Key.of(tasks.seed, "tasks").fold(torch.arange(tasks.count))
        return self.world.tasks(key, tasks.nearest, math.inf if tasks.furthest is None else tasks.furthest)

    @cached_property
    def distance(self) -> Tensor | None:
        """(B,): how far goals are from where their tasks begin, where the world shows positions."""
        seen = self.world.reset(self.tasks)
        if "position" not in seen:
            return None
        return (seen["position"] - self.world.goal()["position"])[:, 0].norm(dim=-1)

    # --- the policies ---

    def policies(self) -> dict[str, Callable[[], Policy]]:
        """By name; each is made anew when it is asked for."""
        found: dict[str, Callable[[], Policy]] = {RANDOM: lambda: Anything(self.actions, self.key)}
        if hasattr(self.world, "straight"):
            found[STRAIGHT] = lambda: Straight(self.world)
        return found | {name: partial(self._planned, way) for name, way in self.ways.items()}

    def act(self, name: str) -> Acted:
        """All tasks, by one policy."""
        policy, way = self.policies()[name](), self.ways.get(name)
        replan, memory = (way.keys.replan, self.memory(way)) if way else (self.keys.replan, 1)
        with torch.no_grad():
            record = episodes.acted(self.world, self.tasks, policy, self.keys.steps, replan, memory)
        scores = episodes.scores(record)
        if self.distance is not None:
            scores |= episodes.by_distance(record.reached.any(1), self.distance)
        if isinstance(policy, Planned):
            scores |= episodes.cost_of(policy, len(self.tasks))
        return Acted(record, scores, policy)

    def _planned(self, way: Way) -> Planned:
        pose = partial(self.posed if way.keys.horizon else self._truth, way)
        return Planned(self.world, self._planner(way), pose, self.key, way.keys.replan, self._clock(way))

    def _planner(self, way: Way) -> Planner:
        """Made for a way to plan. Mistake where it cannot work."""
        if way.keys.oracle and not hasattr(self.world, "truth"):
            raise Mistake(f"{way.path}.oracle: {self.plan.environment.name} cannot be its own model; leave it out")
        if way.exact and not hasattr(self.world, "foreseen"):
            raise Mistake(f"{way.path}.exact: {self.plan.environment.name} does not say what would be seen; leave it out")
        clock = self._clock(way)
        if way.keys.replan % clock:
            said = f"{way.keys.replan} is no multiple of {clock}, the steps of the world in one that is planned"
            raise Mistake(f"{way.path}.replan: {said}")
        planner: Planner = self._made(way.planner)
        return planner

    def _tried(self, way: Way) -> None:
        """The first decision of the first task, found before anybody acts. Mistake where a planner follows gradients at an exact level, or
        sends a level to waypoints by which nothing counts: of planners within planners only this shows which one plans where.
        """
        seen = episodes.standing(self.world.reset(self.tasks[:1]), self.memory(way), len(self.actions.low))
        problem = self.posed(way, seen, self.keys.steps)
        try:
            with torch.no_grad():
                self._planner(way).plan(problem, None, Key(self.key.word[:1]))
        except Mistake as mistake:
            raise Mistake(f"{way.path}.planner: {mistake}") from mistake

    def _clock(self, way: Way) -> int:
        """Steps of the world in one of the lowest level that plans."""
        if not way.keys.horizon:
            return min(way.keys.oracle)
        stack, source = self._learned(way)
        return stack.composer.spec(next(iter(way.keys.horizon)), source).clock

    def memory(self, way: Way) -> int:
        """How many steps of the world are seen at once: what one step of each level needs that plans, or that such a one depends on."""
        if not way.keys.horizon:
            return 1
        stack, _ = self._learned(way)
        planning = [stack.nodes[label] for label in way.keys.horizon]
        conditions = [stack.nodes[name] for node in planning if (name := node.plan.keys.condition) in stack.nodes]
        return max(stack.composer.frames(node, 1)[0] for node in [*planning, *conditions])

    def _learned(self, way: Way) -> tuple[Stack, str]:
        """What plans so, and the source that it reads."""
        assert self.stack is not None
        return self.stack, self.stack.nodes[next(iter(way.keys.horizon))].source

    def _costs(self, way: Way, level: str, spec: Spec) -> list[tuple[CostTerm, float]]:
        of_level = [(keys, cost) for keys, cost in way.costs.values() if keys.level == level]
        return [(self._made(cost, spec), keys.weight) for keys, cost in of_level]

    def _truth(self, way: Way, observed: Batch, left: int) -> PlanningProblem:
        """Where the tasks stand, with the world itself as the model."""
        costs = self._costs(way, WORLD, Spec(width=observed["position"].shape[-1]))
        above: PlanningProblem | None = None
        for stride, horizon in sorted(way.keys.oracle.items(), reverse=True):
            above = self.world.truth(min(horizon, math.ceil(left / stride)), costs, stride, above)
        assert above is not None
        return above

    def posed(self, way: Way, observed: Batch, left: int) -> control.Problem:
        """Where the tasks stand, as the levels see it."""
        stack, source = self._learned(way)
        specs = {label: stack.composer.spec(label, source) for label in way.keys.horizon}
        horizons = {label: min(way.keys.horizon[label], math.ceil(left / spec.clock)) for label, spec in specs.items()}
        costs = {label: self._costs(way, label, spec) for label, spec in specs.items()}
        goal = episodes.standing(self.world.goal(), self.memory(way), len(self.actions.low))
        space = self._space(way)
        problem = control.problem(stack, source, horizons, observed, goal, costs, space)
        problem = exact.posed(problem, way.exact, self.world, source, observed, space)
        (lowest, spec), *_ = specs.items()
        if len(problem.space.low) != spec.clock * len(self.actions.low):
            said = f"the actions of {lowest!r} are macro-actions, which nobody can do; name a level below it"
            raise Mistake(f"{way.path}.horizon: {said}")
        return problem

    def _space(self, way: Way) -> ActionSpace:
        """What levels plan with: a model knows only what it has seen done."""
        low, high = self.actions.low, self.actions.high
        middle, half = (low + high) / 2, way.keys.reach * (high - low) / 2
        return ActionSpace(middle - half, middle + half)


def of_run(reference: str, overrides: list[str], registry: Registry, say: Callable[[str], None]) -> Setting:
    """What a run has learned, at its newest checkpoint, in the world of its study; or a study, where nothing has to be learned."""
    try:
        run = runs.find(reference)
    except Mistake as unknown:
        return _of_study(reference, overrides, registry, unknown)
    found: list[Problem] = []
    study = parse(changed(run.resolved(), overrides, ("plan", "train.device"), found), registry, str(run.path))
    study.problems += found + problems(study)
    study.complain()
    device = making.device(study)
    datasets = making.made_sources(study)
    stack = making.new_stack(study, datasets, device)
    saved = checkpoint.newest(run.checkpoints, say)
    load_state(stack, saved.model, str(saved.path))
    return Setting(study, stack.eval().requires_grad_(False), device, run)


def _of_study(reference: str, overrides: list[str], registry: Registry, unknown: Mistake) -> Setting:
    try:
        study = read(reference, overrides, registry)
    except Mistake:
        raise unknown from None
    study.problems += problems(study)
    study.complain()
    if study.plan is not None and any(way.keys.horizon for way in study.plan.ways().values()):
        raise Mistake(f"{study.name} is a study, whose levels have learned nothing yet: train it, and plan with the run")
    return Setting(study, None, making.device(study))


def problems(study: Study) -> list[Problem]:
    """What is wrong with the `plan` of a study, as far as its words tell."""
    if study.plan is None:
        return []
    plan, levels = study.plan, study.order["levels"]
    found = _wrong(plan, {"horizon", "exact", "oracle", "costs"}, levels)
    for variant in plan.beside.values():
        found += _wrong(variant, variant.given.keys, levels)
    return found


def _wrong(way: Way, said: Collection[str], levels: list[str]) -> list[Problem]:
    """What is wrong with a way to plan; `said`: the keys that are its own: what is wrong with others is said where they are."""
    keys, found, planning = way.keys, list[Problem](), [*way.keys.horizon, WORLD]
    misspelt = any(label not in levels for label in keys.horizon)
    for label in keys.horizon if "horizon" in said else ():
        if label not in levels:
            message = f"no level {label!r}{nearest(label, levels)} (there are: {listed(levels)})"
            found.append(Problem(f"{way.path}.horizon.{label}", message))
    for label in keys.exact if "exact" in said else ():
        if label not in keys.horizon:
            message = f"{label!r} does not plan{nearest(label, keys.horizon)} (there are: {listed(keys.horizon)})"
            found.append(Problem(f"{way.path}.exact", message))
    if not (keys.horizon or keys.oracle) and {"horizon", "oracle"} & set(said):
        found.append(Problem(way.path, "nothing plans: `horizon` names levels, `oracle` strides of the world itself"))
    found += _strides(way) if "oracle" in said else []
    counted = {label: cost.level for label, (cost, _) in way.costs.items()}
    for label, level in counted.items() if "costs" in said else ():
        if level not in planning and not (misspelt and level in levels):
            message = f"{level!r} does not plan{nearest(level, planning)} (there are: {listed(planning)})"
            found.append(Problem(f"{way.path}.costs.{label}.level", message))
    for label in _idle(way, set(counted.values())) if {"horizon", "oracle", "costs"} & set(said) else ():
        if label in (*levels, WORLD):
            found.append(Problem(f"{way.path}.costs", f"nothing counts at {label!r}, nor above: every plan would be as good"))
    return found


def _strides(way: Way) -> list[Problem]:
    """What is wrong with those of the world itself."""
    strides = sorted(way.keys.oracle)
    if strides and strides[0] != 1:
        said = f"the lowest stride is 1, for what is done is said step by step; written: {strides[0]}"
        return [Problem(f"{way.path}.oracle", said)]
    return [
        Problem(f"{way.path}.oracle", f"{upper} is no multiple of {lower}, the stride below it")
        for lower, upper in pairwise(strides)
        if upper % lower
    ]


def _idle(way: Way, used: set[str]) -> list[str]:
    """What plans though no cost counts there, nor above; `used`: where one does."""
    labels = list(way.keys.horizon)
    idle = [label for place, label in enumerate(labels) if not used & set(labels[place:])]
    return idle + [WORLD] * (bool(way.keys.oracle) and WORLD not in used)


def read_tasks(world: Environment, path: str) -> Tensor:
    """The rows of a file of comma-separated numbers, whose first line names them. Mistake where they are not those of the world.

    The file is looked for as a path, and then where studies are.
    """
    found = next((place for place in (Path(path), *(folder / path for folder in folders())) if place.is_file()), None)
    if found is None:
        known = sorted({file.name for folder in folders() for file in folder.glob("*.csv")})
        raise Mistake(f"no file of tasks {path!r}{nearest(path, known)} (where studies are, there are: {listed(known)})")
    try:
        first, *rows = [line.strip().split(",") for line in found.read_text(encoding="utf-8").splitlines() if line.strip()]
        numbers = [[float(number) for number in row] for row in rows]
    except (OSError, ValueError) as error:
        raise Mistake(f"{path}: tasks cannot be read: {error}") from None
    if tuple(first) != tuple(world.columns) or not numbers or any(len(row) != len(first) for row in numbers):
        raise Mistake(f"{path}: a task of this world is {','.join(world.columns)}; the file has {','.join(first)}")
    return torch.tensor(numbers)
