"""The graph of levels at work: encoded once a step, asked for what each level says of a batch.

Only steps that some level reads are encoded, and each once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from hjepa import optimizers, randomness
from hjepa.compose import Composer, Node, Streams, make_sources, streams_of
from hjepa.contracts import Batch, Here, Outcome, Spec, States
from hjepa.errors import Mistake, Problem, listed, nearest, some
from hjepa.nn.states import joined, states_of, windows
from hjepa.randomness import Key
from hjepa.study import Study


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

    def level(self, label: str) -> Any:
        """A level by its label, with whatever its protocol promises."""
        return self.levels[label]

    @property
    def trained(self) -> list[str]:
        return [label for label, node in self.nodes.items() if not node.plan.keys.frozen]

    def forward(self, batches: Mapping[str, Batch], step: int) -> dict[str, Outcome]:
        """One step of training: the outcome of every level that takes part in it."""
        return Pass(self, batches, step).outcomes()

    def loss(self, outcomes: Mapping[str, Outcome], step: int) -> Tensor:
        """What is back-propagated: every term of every level, by the level's weight."""
        weighted = [
            self.nodes[label].plan.keys.weight(step) * term
            for label, outcome in outcomes.items()
            for term in outcome.terms.values()
        ]
        return torch.stack([term.float() for term in weighted]).sum()

    def after_step(self, step: int, labels: Iterable[str]) -> None:
        """The preventions that follow the optimizer (a teacher, say), of the levels that took part in the step."""
        with torch.no_grad():
            for module in dict.fromkeys(module for label in labels for module in self.levels[label].modules()):
                follow: Callable[[int], None] | None = getattr(module, "after_step", None)
                if follow is not None:
                    follow(step)

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
        return {label: self.stack.levels[label](self.here(label)) for label in self._active()}

    def _active(self) -> list[str]:
        """Levels that are not frozen, whose source has a batch, and that count at this step; for looking, whatever they count."""
        nodes = [self.stack.nodes[label] for label in self.stack.trained]
        counting = [node for node in nodes if self.whole or node.plan.keys.weight(self.step)]
        return [node.label for node in counting if node.source in self.batches]

    # which own steps of each level are needed

    def _steps(self, label: str, source: str) -> int:
        return self.stack.composer.spec(label, source).steps

    def _own(self, label: str) -> list[int]:
        """The own steps that a level trains on: all, or a window keyed by the step."""
        steps, crop = self._steps(label, self.stack.nodes[label].source), self.stack.nodes[label].plan.keys.crop
        if crop is None or self.whole:
            return list(range(steps))
        key = Key.of(self.stack.seed, "crop", label, self.step)
        start = int(randomness.integers(key, "start", 0, steps - crop + 1))
        return list(range(start, start + crop))

    def _wanted(self) -> dict[tuple[str, str], list[int]]:
        """For every level and source, the own steps that somebody reads; from the top down."""
        wanted: dict[tuple[str, str], set[int]] = {}
        for label in self._active():
            source = self.stack.nodes[label].source
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
                self.made[label, source] = self.stack.level(label).encode(below)
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
        """What a level sees of this step. Nothing in it refers back to it: what was made would stay until garbage is collected."""
        node = self.stack.nodes[label]
        source, own = node.source, self._own(label)
        batch = self.batches[source]

        @cache
        def below() -> States:
            return self.below(label, source, own)

        @cache
        def states() -> States:
            made, at = self.states(label, source), self._at(label, source)
            return made if at == own else made.slice(at.index(own[0]), at.index(own[0]) + len(own))

        device, view = batch["ids"].device, getattr(self.stack.level(label), "view", states_of)
        return Here(
            below=below,
            states=states,
            view=lambda encoder: states() if encoder is None else view(encoder, below()),
            key=Key.of(self.stack.seed, "level", label, device=device).fold(batch["epoch"], batch["ids"]),
            step_key=Key.of(self.stack.seed, "level", label, "step", self.step),
            step=self.step,
            condition=partial(self._condition, node, own),
        )

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
        raise Mistake(
            f"the source promises a stream {name!r} and its batch has none{nearest(name, batch)} (it has: {listed(batch)})"
        )
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


# --- checking and keeping ---------------------------------------------------------------------------------------------


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
        spec, level = composer.spec(label, node.source), stack.level(label)
        needed, shown = composer.frames(node, level.needs)
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
        said = [f"missing: {some(missing)}"] * bool(missing) + [f"unknown: {some(unknown)}"] * bool(unknown)
        said += [f"of another shape: {some(shapes)}"] * bool(shapes)
        raise Mistake(f"{where} does not fit the study; {'; '.join(said)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
