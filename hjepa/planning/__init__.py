"""The `plan` of a study, at work: its tasks are done by its planner in what its levels have learned, and by others beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hjepa import checkpoint, control, making, runs
from hjepa.compose import Maker, Misfit
from hjepa.contracts import ActionSpace, Batch, CostTerm, Environment, Planner, PlanningProblem, Spec
from hjepa.errors import Mistake, Problem, listed, nearest
from hjepa.parts import Component
from hjepa.planning import episodes
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
        if self.keys.oracle and not hasattr(self.world, "truth"):
            raise Mistake(f"plan.oracle: {self.plan.environment.name} cannot be its own model; leave it out")
        self.tasks = self._tasks().to(self.device)
        self.key = Key.of(self.study.seed, "plan", device=self.device).fold(torch.arange(len(self.tasks), device=self.device))

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

    # --- the policies ---

    def policies(self) -> dict[str, Callable[[], Policy]]:
        """By name; each is made anew when it is asked for."""
        found: dict[str, Callable[[], Policy]] = {"random": lambda: Anything(self.world.actions, self.key)}
        if hasattr(self.world, "straight"):
            found["straight"] = lambda: Straight(self.world)
        if self.keys.oracle:
            found["oracle"] = lambda: self._planned(self._truth, min(self.keys.oracle))
        if self.keys.horizon and self.stack is not None:
            clock = self.stack.composer.spec(next(iter(self.keys.horizon)), self._source()).clock
            found["planned"] = lambda: self._planned(self.posed, clock)
        return found

    def act(self, name: str) -> Acted:
        """All tasks, by one policy."""
        policy = self.policies()[name]()
        with torch.no_grad():
            record = episodes.acted(self.world, self.tasks, policy, self.keys.steps, self.keys.replan, self.memory)
        scores = episodes.scores(record)
        if record.position is not None:
            scores |= episodes.by_distance(record, self.world.goal()["position"][:, 0])
        if isinstance(policy, Planned):
            scores |= episodes.cost_of(policy, len(self.tasks))
        return Acted(record, scores, policy)

    def _planned(self, pose: Callable[[Batch, int], PlanningProblem], clock: int) -> Planned:
        if self.keys.replan % clock:
            raise Mistake(
                f"plan.replan: {self.keys.replan} is no multiple of {clock}, the steps of the world in one that is planned"
            )
        planner: Planner = self._made(self.plan.planner)
        return Planned(self.world, planner, pose, self.key, self.keys.replan, clock)

    @property
    def memory(self) -> int:
        """How many steps of the world are seen at once: what one step of the highest level needs."""
        if not self.keys.horizon or self.stack is None:
            return 1
        return self.stack.composer.frames(self.stack.nodes[list(self.keys.horizon)[-1]], 1)[0]

    def _source(self) -> str:
        assert self.stack is not None
        return self.stack.nodes[next(iter(self.keys.horizon))].source

    def _costs(self, level: str, spec: Spec) -> list[tuple[CostTerm, float]]:
        of_level = [(keys, cost) for keys, cost in self.plan.costs.values() if keys.level == level]
        return [(self._made(cost, spec), keys.weight) for keys, cost in of_level]

    def _truth(self, observed: Batch, left: int) -> PlanningProblem:
        """Where the tasks stand, with the world itself as the model."""
        costs = self._costs(WORLD, Spec(width=observed["position"].shape[-1]))
        above: PlanningProblem | None = None
        for stride, horizon in sorted(self.keys.oracle.items(), reverse=True):
            above = self.world.truth(min(horizon, math.ceil(left / stride)), costs, stride, above)
        assert above is not None
        return above

    def posed(self, observed: Batch, left: int) -> control.Problem:
        """Where the tasks stand, as the levels see it."""
        stack, source = self.stack, self._source()
        assert stack is not None
        specs = {label: stack.composer.spec(label, source) for label in self.keys.horizon}
        horizons = {label: min(self.keys.horizon[label], math.ceil(left / spec.clock)) for label, spec in specs.items()}
        costs = {label: self._costs(label, spec) for label, spec in specs.items()}
        goal = episodes.standing(self.world.goal(), self.memory, len(self.world.actions.low))
        problem = control.problem(stack, source, horizons, observed, goal, costs, self._space())
        (lowest, spec), *_ = specs.items()
        if len(problem.space.low) != spec.clock * len(self.world.actions.low):
            raise Mistake(
                f"plan.horizon: the actions of {lowest!r} are macro-actions, which nobody can do; name a level below it"
            )
        return problem

    def _space(self) -> ActionSpace:
        """What levels plan with: a model knows only what it has seen done."""
        low, high = self.world.actions.low, self.world.actions.high
        middle, half = (low + high) / 2, self.keys.reach * (high - low) / 2
        return ActionSpace(middle - half, middle + half)


def of_run(reference: str, overrides: list[str], registry: Registry, say: Callable[[str], None]) -> Setting:
    """What a run has learned, at its newest checkpoint, in the world of its study; or a study, where nothing has to be learned."""
    try:
        run = runs.find(reference)
    except Mistake as unknown:
        return _of_study(reference, overrides, registry, unknown)
    found: list[Problem] = []
    study = parse(changed(run.resolved(), overrides, ("plan",), found), registry, str(run.path))
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
    if study.plan is not None and study.plan.keys.horizon:
        raise Mistake(f"{study.name} is a study, whose levels have learned nothing yet: train it, and plan with the run")
    return Setting(study, None, making.device(study))


def problems(study: Study) -> list[Problem]:
    """What is wrong with the `plan` of a study, as far as its words tell."""
    if study.plan is None:
        return []
    keys, labels, found = study.plan.keys, study.order["levels"], []
    for label in keys.horizon:
        if label not in labels:
            said = f"no level {label!r}{nearest(label, labels)} (there are: {listed(labels)})"
            found.append(Problem(f"plan.horizon.{label}", said))
    planning = [*keys.horizon, *([WORLD] if keys.oracle else [])]
    if not planning:
        found.append(Problem("plan", "nothing plans: `horizon` names levels, `oracle` strides of the world itself"))
    counted = {label: cost.level for label, (cost, _) in study.plan.costs.items()}
    for label, level in counted.items():
        if level not in (*keys.horizon, WORLD):
            said = f"{level!r} does not plan{nearest(level, planning)} (there are: {listed([*keys.horizon, WORLD])})"
            found.append(Problem(f"plan.costs.{label}.level", said))
    levels, used = list(keys.horizon), set(counted.values())
    idle = [label for place, label in enumerate(levels) if not used & set(levels[place:])]
    idle += [WORLD] if keys.oracle and WORLD not in used else []
    found += [Problem("plan.costs", f"nothing counts at {label!r}, nor above: every plan would be as good") for label in idle]
    return found


def read_tasks(world: Environment, path: str) -> Tensor:
    """The rows of a file of comma-separated numbers, whose first line names them. Mistake where they are not those of the world.

    The file is looked for as a path, and then where studies are.
    """
    found = next((place for place in (Path(path), *(folder / path for folder in folders())) if place.is_file()), Path(path))
    try:
        first, *rows = [line.strip().split(",") for line in found.read_text(encoding="utf-8").splitlines() if line.strip()]
        numbers = [[float(number) for number in row] for row in rows]
    except (OSError, ValueError) as error:
        raise Mistake(f"{path}: tasks cannot be read: {error}") from None
    if tuple(first) != tuple(world.columns) or not numbers or any(len(row) != len(first) for row in numbers):
        raise Mistake(f"{path}: a task of this world is {','.join(world.columns)}; the file has {','.join(first)}")
    return torch.tensor(numbers)
