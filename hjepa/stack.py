"""The graph of levels: composed from a study, checked before a tensor is allocated, encoded once a step.

A level reads a stream of a source, or levels below it, in windows at its own clock: own step i sees the steps
`i * stride ... i * stride + window - 1` of what it reads, so it never sees its own future. Only steps that some level reads are
encoded, and each once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from hjepa import optimizers, randomness
from hjepa.contracts import Batch, Build, Dataset, Here, Outcome, Spec, States
from hjepa.errors import Mistake, Problem, listed, nearest
from hjepa.nn.states import joined, states_of, window_spec, windows
from hjepa.randomness import Key
from hjepa.study import Component, LevelPlan, Shared, Study

LARGEST = 10_000
"""Modules of a stack: far above any that trains, far below what a slip of the finger asks for."""
REFUSALS = (ValueError, TypeError, ArithmeticError, RuntimeError, MemoryError, OSError, Mistake)
"""What a component raises that cannot work with its options: its own words, and what torch says to sizes beyond all measure."""

# --- making components ------------------------------------------------------------------------------------------------


class Misfit(Exception):
    """A component refused what it was given."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Lost(Exception):
    """What is needed could not be understood or made; that is noted already."""


class Maker:
    """Makes the components of a study. Parameters are drawn from `(seed, path)`; what is shared is made once."""

    def __init__(self, study: Study) -> None:
        self.seed = study.seed
        nodes = [node for plan in study.levels.values() for node in plan.component.walk()]
        self._at = {node.path: node for node in nodes if isinstance(node, Component)}
        self._targets = {node.target for node in nodes if isinstance(node, Shared)}
        self._shared: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def make(self, node: Component | Shared, *neighbours: Any) -> Any:
        if isinstance(node, Shared) and node.target not in self._at:
            raise Lost
        component = self._at[node.target] if isinstance(node, Shared) else node
        if component.path not in self._targets:
            return self._new(component, neighbours)
        if component.path not in self._shared:
            self._shared[component.path] = (self._new(component, neighbours), neighbours)
        instance, known = self._shared[component.path]
        if _shapes(known) != _shapes(neighbours):
            raise Misfit(Problem(node.path, f"cannot be one with {component.path}: that reads {_told(known)}, this {_told(neighbours)}"))
        return instance

    def _new(self, component: Component, neighbours: tuple[Any, ...]) -> Any:
        options = {name: self._ready(value) for name, value in component.options.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(Key.of(self.seed, component.path).word) % (1 << 63))
            try:
                return component.found(*neighbours, **options)
            except REFUSALS as error:
                said = str(error).partition("\n")[0] or type(error).__name__
                raise Misfit(Problem(component.path, said)) from error

    def _ready(self, value: Any) -> Any:
        """Components within an option become factories."""
        if isinstance(value, Component | Shared):
            return Factory(self, value)
        if isinstance(value, list):
            return [self._ready(item) for item in value]
        if isinstance(value, dict):
            return {key: self._ready(item) for key, item in value.items()}
        return value


class Factory(Build[Any]):
    """A component that is made when its owner knows its neighbours."""

    def __init__(self, maker: Maker, node: Component | Shared) -> None:
        self.maker, self.node, self.path = maker, node, node.path
        self.name = node.name if isinstance(node, Component) else f"share of {node.target}"

    def __call__(self, *neighbours: Any) -> Any:
        return self.maker.make(self.node, *neighbours)


def _shapes(neighbours: tuple[Any, ...]) -> tuple[Any, ...]:
    """What must agree for an instance to be shared: everything but the ticks."""
    return tuple(replace(n, ticks=()) if isinstance(n, Spec) else n for n in neighbours)


@contextmanager
def limited(modules: int) -> Iterator[None]:
    """Ends the making of layer after layer where somebody asked for a million of them."""
    made = itertools.count()

    def count(owner: nn.Module, name: str, module: nn.Module) -> None:
        if next(made) >= modules:
            raise ValueError(f"more than {modules:,} modules: one of the numbers is far too large")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _told(neighbours: tuple[Any, ...]) -> str:
    return ", ".join(_seen(n) if isinstance(n, Spec) else str(n) for n in neighbours)


def _seen(spec: Spec) -> str:
    """What a spec says of one step, in words."""
    shown = [f"tokens {list(spec.grid)} of width {spec.width}"] * bool(spec.width)
    shown += [f"maps {', '.join(str(size) for size in spec.maps)}"] * bool(spec.maps)
    shown += [f"actions of width {spec.actions}"] * bool(spec.actions) + [f"a condition of width {spec.condition}"] * bool(spec.condition)
    return " and ".join([*shown, *(_seen(part) for part in spec.parts)]) or "nothing"


# --- the graph --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """Where one level stands in the graph."""

    label: str
    source: str
    reads: tuple[str, ...]
    plan: LevelPlan

    @property
    def stride(self) -> int:
        return self.plan.keys.stride

    @property
    def window(self) -> int:
        return self.plan.window


Streams = Mapping[str, Mapping[str, Spec]]
"""Source -> batch key -> spec."""


def graph(study: Study, streams: Streams) -> tuple[dict[str, Node | None], list[Problem]]:
    """What each level reads, from which source; none for one that is wrong, and for what reads such a one. And what is wrong."""
    nodes: dict[str, Node | None] = {}
    problems: list[Problem] = []
    given = {label: streams.get(label) for label in study.order["data"]}
    for label in study.order["levels"]:
        nodes[label] = None
        try:
            if label in study.levels:
                nodes[label] = _node(label, study.levels[label], {name: nodes[name] for name in nodes if name != label}, given)
        except Misfit as misfit:
            problems.append(misfit.problem)
        except Lost:
            continue
    return nodes, problems


def _node(label: str, plan: LevelPlan, before: dict[str, Node | None], given: Mapping[str, Mapping[str, Spec] | None]) -> Node:
    keys, path = plan.keys, f"levels.{label}"
    if keys.data is not None and keys.data not in given:
        raise Misfit(Problem(f"{path}.data", f"no source {keys.data!r}{nearest(keys.data, given)} (there are: {listed(given)})"))
    named = [keys.reads] if isinstance(keys.reads, str) else keys.reads
    if named == []:
        raise Misfit(Problem(f"{path}.reads", "an empty list: name a level or a batch key"))
    if named is None:
        return _following(label, plan, before, given)
    above = next((_sure(before[name]).source for name in named if name in before), None)
    source = keys.data or above or next(iter(given), "")
    allowed = [*before, *_sure(given.get(source))]
    for name in named:
        if name not in allowed:
            said = f"no level before {label!r} and no stream of {source!r} is called {name!r}{nearest(name, allowed)}"
            raise Misfit(Problem(f"{path}.reads", f"{said} (there are: {listed(allowed)})"))
        if name in before:
            _sure(before[name])
    return Node(label, source, tuple(named), plan)


def _following(label: str, plan: LevelPlan, before: dict[str, Node | None], given: Mapping[str, Mapping[str, Spec] | None]) -> Node:
    """A level that does not say what it reads: the level before it, or the main stream of a source."""
    if before:
        last = _sure(next(reversed(before.values())))
        if plan.keys.data in (None, last.source):
            return Node(label, last.source, (last.label,), plan)
    source = plan.keys.data or next(iter(given), "")
    return Node(label, source, (next(iter(_sure(given.get(source)))),), plan)


T = TypeVar("T")


def _sure(found: T | None) -> T:
    if found is None:
        raise Lost
    return found


class Composer:
    """Makes the levels in order, each from the spec of what it reads; everything that does not fit is noted."""

    def __init__(self, study: Study, streams: Streams) -> None:
        self.study, self.streams = study, streams
        nodes, self.problems = graph(study, streams)
        self.nodes = {label: node for label, node in nodes.items() if node is not None}
        self.maker = Maker(study)
        self.levels: dict[str, Any] = {}
        lost = set(nodes) - set(self.nodes)
        with limited(LARGEST):
            for label, node in self.nodes.items():
                if not lost & {*node.reads, node.plan.keys.condition}:
                    self._compose(label, node)
                if label not in self.levels:
                    lost.add(label)

    def _compose(self, label: str, node: Node) -> None:
        try:
            below = self.below(node, node.source)
            self._enough(node, self.frames(node, 1), 1, below)
            made = self.maker.make(node.plan.component, replace(below, condition=self._condition(node), latent=0))
            self._keeps_the_clock(node, made, below)
            self._enough(node, self.frames(node, made.needs), made.needs, below)
            self._crop(node, made)
        except Misfit as misfit:
            self.problems.append(misfit.problem)
        except Lost:
            return
        else:
            self.levels[label] = made

    def spec(self, name: str, source: str) -> Spec:
        """Of a level, or a stream, on a source (a level can be read on another source than it is trained on)."""
        if name not in self.nodes:
            if name not in self.streams[source]:
                raise Misfit(Problem(f"data.{source}", f"gives no stream {name!r} (there are: {listed(self.streams[source])})"))
            return self.streams[source][name]
        own: Spec = self.levels[name].spec
        node = self.nodes[name]
        if source == node.source:
            return own
        there, here = self.below(node, source), self.below(node, node.source)
        if _shapes((there,)) != _shapes((here,)):
            said = f"level {name!r} reads {_seen(here)}, and from source {source!r} it would read {_seen(there)}"
            raise Misfit(Problem(f"data.{source}", said))
        return replace(own, ticks=there.ticks)

    def below(self, node: Node, source: str) -> Spec:
        """What a level reads, in windows at its own clock."""
        specs = [self.spec(name, source) for name in node.reads]
        if len({spec.ticks for spec in specs}) > 1:
            shown = "; ".join(f"{name} at {_some(map(str, spec.ticks))}" for name, spec in zip(node.reads, specs, strict=True))
            raise Misfit(Problem(f"levels.{node.label}.reads", f"what is read together must keep the same ticks: {shown}"))
        joined = specs[0] if len(specs) == 1 else Spec(ticks=specs[0].ticks, actions=specs[0].actions, parts=tuple(specs))
        return window_spec(joined, node.stride, node.window)

    def frames(self, node: Node, steps: int) -> tuple[int, str]:
        """How many steps of the source `steps` own steps need, and the sum that shows it."""
        needed = (steps - 1) * node.stride + node.window
        shown = f"({steps} - 1) * {node.stride} + {node.window} = {needed}"
        below = self.nodes.get(node.reads[0])
        if below is None:
            return needed, f"{shown} {node.reads[0]}"
        further, sum_below = self.frames(below, needed)
        return further, f"{shown} steps of {below.label!r}, which need {sum_below}"

    def given(self, node: Node) -> int:
        """How many steps of the stream below all others a sample of the level's source has."""
        source = node.source
        while node.reads[0] in self.nodes:
            node = self.nodes[node.reads[0]]
        return self.spec(node.reads[0], source).steps

    def _enough(self, node: Node, needed: tuple[int, str], steps: int, below: Spec) -> None:
        have = below.steps
        if have >= steps:
            return
        given = self.given(node)
        said = f"{steps} own step{'s' * (steps > 1)} need {needed[1]}; source {node.source!r} gives {given}"
        raise Misfit(Problem(f"levels.{node.label}", f"too few steps: {said}, which make {have} own steps"))

    def _keeps_the_clock(self, node: Node, made: Any, below: Spec) -> None:
        """One state a window, which says when the window ends."""
        if made.spec.ticks != below.ticks:
            said = f"gives states at the ticks {list(made.spec.ticks)} from windows that end at {list(below.ticks)}"
            rule = "a level gives one state a window, at its last tick, or the future would leak; time within can be in the grid"
            raise Misfit(Problem(f"levels.{node.label}", f"{said}: {rule}"))

    def _crop(self, node: Node, made: Any) -> None:
        crop = node.plan.keys.crop
        if crop is not None and not made.needs <= crop <= made.spec.steps:
            said = f"at least {made.needs} (what the level needs) and at most {made.spec.steps} (what it has)"
            raise Misfit(Problem(f"levels.{node.label}.crop", f"{said}; written: {crop}"))

    def _condition(self, node: Node) -> int:
        name = node.plan.keys.condition
        if name is None:
            return 0
        allowed = [*self.levels, *self.streams[node.source]]
        if name not in allowed:
            said = f"no level before and no stream of {node.source!r} is called {name!r}{nearest(name, allowed)}"
            raise Misfit(Problem(f"levels.{node.label}.condition", f"{said} (there are: {listed(allowed)})"))
        width = self.spec(name, node.source).width
        if not width:
            raise Misfit(Problem(f"levels.{node.label}.condition", f"{name!r} gives no tokens: a condition is a vector a step"))
        return width


# --- the stack --------------------------------------------------------------------------------------------------------


class Stack(nn.Module):
    """Every level of a study, and how they read one another."""

    def __init__(self, study: Study, streams: Streams) -> None:
        super().__init__()
        composer = Composer(study, streams)
        study.problems += composer.problems
        study.complain()
        self.seed = study.seed
        self.nodes, self.composer = composer.nodes, composer
        self.levels = nn.ModuleDict(composer.levels)
        for label, node in self.nodes.items():
            if node.plan.keys.frozen:
                self.levels[label].requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Stack:
        """Frozen levels stay in evaluation mode."""
        super().train(mode)
        for label, node in self.nodes.items():
            if node.plan.keys.frozen:
                self.levels[label].eval()
        return self

    @property
    def trained(self) -> list[str]:
        return [label for label, node in self.nodes.items() if not node.plan.keys.frozen]

    def forward(self, batches: Mapping[str, Batch], step: int) -> dict[str, Outcome]:
        """One step of training: the outcome of every level that is not frozen and whose source has a batch."""
        return Pass(self, batches, step).outcomes()

    def loss(self, outcomes: Mapping[str, Outcome], step: int) -> Tensor:
        """What is back-propagated: every term of every level, by the level's weight."""
        weighted = [
            self.nodes[label].plan.keys.weight(step) * term for label, outcome in outcomes.items() for term in outcome.terms.values()
        ]
        return torch.stack([term.float() for term in weighted]).sum()

    def after_step(self, step: int, labels: Iterable[str]) -> None:
        """The preventions that follow the optimizer (a teacher, say), of the levels that took part in the step."""
        with torch.no_grad():
            for module in dict.fromkeys(module for label in labels for module in self.levels[label].modules()):
                if hasattr(module, "after_step"):
                    module.after_step(step)

    def states(self, label: str, source: str, batch: Batch) -> States:
        """A level's states of every step of a batch."""
        return Pass(self, {source: batch}, step=0, whole=True).states(label, source)


@dataclass
class Pass:
    """One batch of each source on its way through the stack; whatever is made is kept until the step ends."""

    stack: Stack
    batches: Mapping[str, Batch]
    step: int
    whole: bool = False
    """Every step of every level, without crops: for looking, not for training."""
    made: dict[tuple[str, str], States] = field(default_factory=dict)

    def outcomes(self) -> dict[str, Outcome]:
        self.wanted = self._wanted()
        active = [label for label in self.stack.trained if self.stack.nodes[label].source in self.batches]
        return {label: self.stack.levels[label](self.here(label)) for label in active}

    # which own steps of each level are needed

    def _steps(self, label: str, source: str) -> int:
        return self.stack.composer.spec(label, source).steps

    def _own(self, label: str) -> list[int]:
        """The own steps that a level trains on: all, or a window keyed by the step."""
        steps, crop = self._steps(label, self.stack.nodes[label].source), self.stack.nodes[label].plan.keys.crop
        if crop is None or self.whole:
            return list(range(steps))
        key = Key.of(self.stack.seed, "crop", label, self.step)
        start = int(randomness.integers(key, "start", 0, steps - crop + 1, (1,)))
        return list(range(start, start + crop))

    def _wanted(self) -> dict[tuple[str, str], list[int]]:
        """For every level and source, the own steps that somebody reads; from the top down."""
        wanted: dict[tuple[str, str], set[int]] = {}
        for label in self.stack.trained:
            source = self.stack.nodes[label].source
            if source in self.batches:
                wanted.setdefault((label, source), set()).update(self._own(label))
                condition = self.stack.nodes[label].plan.keys.condition
                if condition in self.stack.nodes:
                    wanted.setdefault((condition, source), set()).update(range(self._steps(condition, source)))
        for label in reversed(self.stack.nodes):
            for (name, source), steps in list(wanted.items()):
                if name == label:
                    self._ask_below(label, source, steps, wanted)
        return {key: sorted(steps) for key, steps in wanted.items()}

    def _ask_below(self, label: str, source: str, steps: set[int], wanted: dict[tuple[str, str], set[int]]) -> None:
        node = self.stack.nodes[label]
        if self.stack.composer.below(node, source).actions and steps:
            steps.update(range(min(steps), max(steps) + 1))  # actions join neighbouring steps: no gaps
        needed = {step * node.stride + offset for step in steps for offset in range(node.window)}
        for name in node.reads:
            if name in self.stack.nodes:
                wanted.setdefault((name, source), set()).update(needed)

    # what is made of them

    def states(self, label: str, source: str) -> States:
        """A level's states at the wanted steps, made once."""
        if (label, source) not in self.made:
            below = self.below(label, source, self._at(label, source))
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stack.nodes[label].plan.keys.frozen):
                self.made[label, source] = self.stack.levels[label].encode(below)
        return self.made[label, source]

    def _at(self, label: str, source: str) -> list[int]:
        """The wanted own steps; all of them where nobody trains."""
        return list(range(self._steps(label, source))) if self.whole else self.wanted[label, source]

    def below(self, label: str, source: str, steps: list[int]) -> States:
        """What a level reads for some of its own steps, in windows."""
        node = self.stack.nodes[label]
        read = joined([self._windows(name, node, source, steps) for name in node.reads])
        return read.detached() if node.plan.keys.gradient == "stop" else read

    def _windows(self, name: str, node: Node, source: str, steps: list[int]) -> States:
        if name in self.stack.nodes:
            read, at = self.states(name, source), self._at(name, source)
        else:
            read = stream_states(self.batches[source], name, self.stack.composer.streams[source][name])
            at = list(range(read.steps))
        position = {step: index for index, step in enumerate(at)}
        return windows(read, [position[step * node.stride] for step in steps], node.stride, node.window)

    def here(self, label: str) -> Here:
        """What a level sees of this step."""
        node = self.stack.nodes[label]
        source, own = node.source, self._own(label)
        batch = self.batches[source]

        def states() -> States:
            made, at = self.states(label, source), self._at(label, source)
            return made if at == own else made.slice(at.index(own[0]), at.index(own[0]) + len(own))

        def view(encoder: Any) -> States:
            return here.states if encoder is None else states_of(encoder, here.below)

        device = batch["ids"].device
        here = Here(
            below=lambda: self.below(label, source, own),
            states=states,
            view=view,
            key=Key.of(self.stack.seed, "level", label, device=device).fold(batch["epoch"], batch["ids"]),
            step_key=Key.of(self.stack.seed, "level", label, "step", self.step),
            step=self.step,
            condition=partial(self._condition, node, own),
        )
        return here

    def _condition(self, node: Node, own: list[int]) -> Tensor | None:
        """(B, 1, C) of a stream without time, or (B, T, C): the latest that each own step may know, zeros before the first."""
        name = node.plan.keys.condition
        if name is None:
            return None
        ticks = self.stack.composer.spec(node.label, node.source).ticks
        given = self.stack.composer.spec(name, node.source).ticks
        if name in self.stack.nodes:
            states = self.states(name, node.source)
        else:
            states = stream_states(self.batches[node.source], name, self.stack.composer.streams[node.source][name])
        if len(given) == 1 and given[0] <= ticks[own[0]]:
            return states.tokens.mean(dim=2)
        known = nn.functional.pad(states.tokens.mean(dim=2), (0, 0, 1, 0))
        return known[:, [sum(tick <= ticks[step] for tick in given) for step in own]]


def stream_states(batch: Batch, name: str, spec: Spec) -> States:
    """A stream of a source as states: (B,T,C,H,W) are maps; (B,T,D), (B,T,N,D), (B,N) words and (B,D) are tokens."""
    if name not in batch:
        raise Mistake(f"the source promises a stream {name!r} and its batch has none{nearest(name, batch)} (it has: {listed(batch)})")
    value = batch[name]
    size = value.shape[0]
    ticks = torch.tensor(spec.ticks, device=value.device).expand(size, -1)
    time = batch["ticks"] if "ticks" in batch and spec.steps > 1 else ticks
    actions = batch["actions"] if spec.actions else None
    if spec.maps:
        empty = value.new_empty((size, spec.steps, 0, 0))
        return States(tokens=empty, time=time, maps=(value,), actions=actions)
    tokens = value.reshape(size, spec.steps, spec.tokens, spec.width)
    valid = batch[f"{name}_valid"].reshape(size, spec.steps, spec.tokens) if f"{name}_valid" in batch else None
    return States(tokens=tokens, time=time, grid=spec.grid, valid=valid, actions=actions)


# --- composing --------------------------------------------------------------------------------------------------------


def make_sources(study: Study) -> dict[str, Dataset]:
    """The datasets of a study; what they refuse is noted in its problems."""
    maker = Maker(study)
    made: dict[str, Dataset] = {}
    for label, plan in study.sources.items():
        seed = study.seed if plan.keys.seed is None else plan.keys.seed
        try:
            made[label] = maker.make(plan.component, seed)
        except Misfit as misfit:
            study.problems.append(misfit.problem)
    return made


def streams_of(sources: Mapping[str, Dataset]) -> dict[str, Mapping[str, Spec]]:
    return {label: dataset.streams for label, dataset in sources.items()}


def check(study: Study) -> Stack:
    """The stack on the meta device: nothing is allocated, and everything that cannot work is raised at once."""
    sources = make_sources(study)
    _check_probes(study)
    with torch.device("meta"):
        stack = Stack(study, streams_of(sources))
    study.problems += optimizers.misfits(study, stack)
    study.complain()
    return stack


def _check_probes(study: Study) -> None:
    """Options of a probe that are called `level` (or `against`) name levels."""
    labels = study.order["levels"]
    for label, probe in study.probes.items():
        named = {"level": [probe.options.get("level")], "against": probe.options.get("against") or []}
        for option, values in named.items():
            for value in values:
                if value is not None and labels and value not in labels:
                    said = f"no level {value!r}{nearest(str(value), labels)} (there are: {listed(labels)})"
                    study.problems.append(Problem(f"probes.{label}.{option}", said))


def parameters(module: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def described(stack: Stack) -> list[dict[str, Any]]:
    """One row a level: what it reads, at which clock, what it gives, how much it learns, and the frames that it needs."""
    composer = stack.composer
    rows = []
    for label, node in stack.nodes.items():
        spec, level = composer.spec(label, node.source), stack.levels[label]
        needed, shown = composer.frames(node, int(level.needs))
        rows.append({
            "level": label,
            "kind": node.plan.component.name,
            "reads": f"{node.source}: {', '.join(node.reads)}",
            "clock": spec.clock,
            "steps": spec.steps,
            "grid": list(spec.grid),
            "width": spec.width,
            "parameters": parameters(level),
            "needs": needed,
            "sum": shown,
            "gives": composer.given(node),
        })  # fmt: skip
    return rows


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each tensor once however often it is shared."""
    kept = dict(module.state_dict(keep_vars=True))
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if name in kept}


def owned_elsewhere(stack: Stack, label: str) -> dict[str, str]:
    """What a level shares with one before it: its name in the level -> its name in the stack, under which it is kept."""
    kept = {id(tensor): name for name, tensor in [*stack.named_parameters(), *stack.named_buffers()]}
    level = stack.levels[label]
    own = {name: kept[id(tensor)] for name, tensor in [*level.named_parameters(), *level.named_buffers()]}
    return {name: known for name, known in own.items() if known != f"levels.{label}.{name}"}


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Into the module, name by name; a Mistake where names or shapes differ."""
    own = unique_state(module)
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unknown or shapes:
        said = [f"missing: {_some(missing)}"] * bool(missing) + [f"unknown: {_some(unknown)}"] * bool(unknown)
        said += [f"of another shape: {_some(shapes)}"] * bool(shapes)
        raise Mistake(f"{where} does not fit the study; {'; '.join(said)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

