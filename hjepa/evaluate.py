"""What the levels have learned: frozen features of fixed samples, shown to the probes of the study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hjepa.collapse import ENERGIES
from hjepa.compose import Maker
from hjepa.contracts import Batch, Here, Observation, Spec, States
from hjepa.errors import Mistake, listed, nearest
from hjepa.loading import Source
from hjepa.monitor import FEW, at_rest
from hjepa.nn.preventions import Preventions
from hjepa.randomness import Key
from hjepa.stack import Pass, Stack
from hjepa.study import Study

CPU = torch.device("cpu")


class Samples:
    """The first samples of each split of each source, on the CPU: once, whatever looks at them, for films are large."""

    def __init__(self, sources: Mapping[str, Source], study: Study, device: torch.device, held: str = "test") -> None:
        self.sources, self.device = sources, device
        # What is tuned on must not be reported on: whoever tunes has `valid` stand where probes ask for `test`.
        self.splits = {"train": "train", "valid": "valid", "test": held}
        self.count, self.batch = study.evaluate.samples, study.evaluate.batch
        self._made: dict[tuple[str, str], Batch] = {}

    def all(self, source: str, split: str) -> Batch:
        """Those of a split."""
        if (source, split) not in self._made:
            count = self.sources[source].count(self.splits[split], self.count)
            chunks = [self.few(source, split, start, self.batch) for start in range(0, count, self.batch)]
            self._made[source, split] = {key: torch.cat([chunk[key].cpu() for chunk in chunks]) for key in chunks[0]}
        return self._made[source, split]

    def few(self, source: str, split: str, start: int, most: int) -> Batch:
        """So many of them, on the device, or as many as there are from there on."""
        count = self.sources[source].count(self.splits[split], self.count)
        return self.sources[source].look(self.splits[split], start, min(start + most, count), self.device)

    def chunks(self, source: str, split: str) -> Iterator[Batch]:
        """All of them, as many at once as are encoded at once, on the device."""
        batch = self.all(source, split)
        for start in range(0, len(batch["ids"]), self.batch):
            yield {key: value[start : start + self.batch].to(self.device) for key, value in batch.items()}


class Bench:
    """What probes may look at (the protocol `Observer`): evaluation mode, no gradient, always the same samples of a split."""

    def __init__(self, stack: Stack, samples: Samples) -> None:
        self.stack, self.samples, self.device = stack, samples, samples.device
        self._seen: dict[tuple[str, str, str], Observation] = {}
        self._conditions: dict[tuple[str, str], Tensor | None] = {}
        self._said: dict[tuple[str, str], dict[str, Tensor]] = {}

    def spec(self, level: str) -> Spec:
        """Of the states that the level gives on its own source."""
        return self.stack.composer.spec(level, self._source(level))

    def observe(self, level: str, split: str, features: str = "online") -> Observation:
        """The level's states of the first samples of a split, on the CPU, as it or its teacher has them."""
        if (level, split, features) not in self._seen:
            chunks = [self._chunk(level, batch, features) for batch in self._batches(level, split)]
            conditions = [condition for _, condition in chunks if condition is not None]
            self._conditions[level, split] = torch.cat(conditions) if conditions else None
            states = _cat_states([states for states, _ in chunks])
            self._seen[level, split, features] = Observation(states, self.samples.all(self._source(level), split))
        return self._seen[level, split, features]

    def draw(self, level: str, figure: Any) -> None:
        """The level's own picture of the first few samples that are tested on, with its label."""
        batch = self.samples.few(self._source(level), "test", 0, min(FEW, self.samples.batch))
        one = self._pass(level, batch)
        with at_rest(self.stack):
            self.stack.level(level).draw(one.here(level), figure)
        if figure.axes:
            figure.suptitle(f"{level}, on held-out samples", x=0.04, ha="left", fontsize=11)

    def _source(self, level: str) -> str:
        return self.stack.nodes[level].source

    def _batches(self, level: str, split: str) -> Iterator[Batch]:
        return self.samples.chunks(self._source(level), split)

    def _pass(self, level: str, batch: Batch) -> Pass:
        return Pass(self.stack, {self._source(level): batch}, step=0, whole=True)

    def _chunk(self, level: str, batch: Batch, features: str) -> tuple[States, Tensor | None]:
        with at_rest(self.stack):
            here = self._pass(level, batch).here(level)
            states, condition = here.states if features == "online" else self._targets(level, here), here.condition
        return _on(CPU, states), None if condition is None else condition.cpu()

    def _targets(self, level: str, here: Here) -> States:
        """The level's states as the prevention that gives its targets has them."""
        found = self.stack.level(level)
        giving = [part for part in found.modules() if isinstance(part, Preventions) and part.giving]
        if not giving:
            raise Mistake(
                f"the targets of level {level!r} are its own states: no prevention gives others; read its online features"
            )
        return giving[0].targets(here)

    def predict(self, level: str, split: str, start: int, steps: int, futures: int = 0) -> States:
        """Own steps start+1 ... start+steps, predicted from own steps 0 ... start; with `futures` so many of each sample."""
        seen, condition = self.observe(level, split), self._conditions[level, split]
        if not hasattr(self.stack.levels[level], "rollout"):
            raise Mistake(f"level {level!r} predicts no later states: a {self.stack.nodes[level].plan.component.name} cannot")
        z = self._drawn(level, seen.batch["ids"], steps, futures) if futures else None
        rows = torch.arange(len(seen.states.time)).repeat_interleave(max(1, futures))
        rolled = []
        for at in torch.split(torch.arange(len(rows)), self.samples.batch):
            known, given = seen.states.rows(rows[at]), None if condition is None else condition[rows[at]]
            rolled.append(self._rolled(level, known, given, None if z is None else z[at.to(z.device)], start, steps))
        return _cat_states(rolled)

    def _drawn(self, level: str, ids: Tensor, steps: int, futures: int) -> Tensor:
        """(n * futures, steps, Z): what the latent of a level draws, keyed by sample."""
        latent = getattr(self.stack.levels[level], "latent", None)
        if latent is None:
            raise Mistake(f"level {level!r} knows one future: it has no latent to draw others from")
        key = Key.of(self.stack.seed, "drawn", level, device=self.device).fold(ids)
        with at_rest(self.stack):
            return latent.sample(futures * steps, key).view(len(ids) * futures, steps, -1)

    def _rolled(self, level: str, seen: States, condition: Tensor | None, z: Tensor | None, start: int, steps: int) -> States:
        actions = None if seen.actions is None else seen.actions[:, start : start + steps].to(self.device)
        known, predicting = _on(self.device, seen.slice(0, start + 1)), self.stack.levels[level]
        if condition is not None:
            condition = condition[:, : start + 1].to(self.device)
        with at_rest(self.stack):
            return _on(CPU, predicting.rollout(known, actions, steps, condition, z))  # type: ignore[operator]

    def predictions(self, level: str, split: str) -> dict[str, Tensor]:
        """What the level says of the same samples besides its states, (n, ...) each, by name. Mistake where it says nothing."""
        if not hasattr(self.stack.levels[level], "predictions"):
            raise Mistake(
                f"level {level!r} says nothing but its states: a {self.stack.nodes[level].plan.component.name} cannot"
            )
        if (level, split) not in self._said:
            found = []
            for batch in self._batches(level, split):
                with at_rest(self.stack):
                    found.append(self.stack.level(level).predictions(self._pass(level, batch).here(level).below))
            self._said[level, split] = {name: torch.cat([one[name].cpu() for one in found]) for name in found[0]}
        return self._said[level, split]

    def energies(self, level: str, split: str) -> dict[str, Tensor]:
        """What the level says of the same samples: `energy`, `trivial` and, where it is known, `shuffled` (n, T)."""
        found = []
        for batch in self._batches(level, split):
            with at_rest(self.stack):
                outcome = self.stack.levels[level](self._pass(level, batch).here(level))
            found.append({name: kept.cpu() for name in ENERGIES if (kept := getattr(outcome, name)) is not None})
        return {name: torch.cat([one[name] for one in found]) for name in ENERGIES if all(name in one for one in found)}


def _on(device: torch.device, states: States) -> States:
    return States(
        tokens=states.tokens.float().to(device),
        time=states.time.to(device),
        grid=states.grid,
        valid=None if states.valid is None else states.valid.to(device),
        maps=tuple(m.float().to(device) for m in states.maps),
        actions=None if states.actions is None else states.actions.to(device),
        doubt=None if states.doubt is None else states.doubt.float().to(device),
    )


def _cat_states(parts: list[States]) -> States:
    first = parts[0]
    return States(
        tokens=torch.cat([p.tokens for p in parts]),
        time=torch.cat([p.time for p in parts]),
        grid=first.grid,
        valid=None if first.valid is None else torch.cat([p.valid for p in parts if p.valid is not None]),
        maps=tuple(torch.cat(maps) for maps in zip(*(p.maps for p in parts), strict=True)),
        actions=None if first.actions is None else torch.cat([p.actions for p in parts if p.actions is not None]),
        doubt=None if first.doubt is None else torch.cat([p.doubt for p in parts if p.doubt is not None]),
    )


def probes(study: Study, only: str | None = None) -> dict[str, Any]:
    """The probes of a study, made; one of them where its label is given."""
    if only is not None and only not in study.probes:
        raise Mistake(f"no probe {only!r}{nearest(only, study.probes)} (the study has: {listed(study.probes)})")
    maker = Maker(study)
    return {label: maker.make(probe) for label, probe in study.probes.items() if only in (None, label)}


def evaluate(
    study: Study,
    stack: Stack,
    untrained: Stack | None,
    sources: Mapping[str, Source],
    device: torch.device,
    only: str | None = None,
    held: str = "test",
) -> tuple[dict[str, float], list[Callable[[Any], None]]]:
    """`probe/<label>/<score>` of the stack, `.../untrained_<score>` of the same stack before training, and what draws them.

    Probes are fitted on `train`, and scored on the split `held`.
    """
    made = probes(study, only)
    samples = Samples(sources, study, device, held)
    trained = Bench(stack, samples)
    benches = {"": trained} if untrained is None else {"": trained, "untrained_": Bench(untrained, samples)}
    scores: dict[str, float] = {}
    for label, probe in made.items():
        for when, bench in benches.items():
            scores |= {f"probe/{label}/{when}{name}": value for name, value in _measured(label, probe, bench).items()}
    draws: list[Callable[[Any], None]] = [partial(probe.draw, trained) for probe in made.values() if hasattr(probe, "draw")]
    levels = [label for label, level in stack.levels.items() if only is None and hasattr(level, "draw")]
    return scores, draws + [partial(trained.draw, label) for label in levels]


def _measured(label: str, probe: Any, bench: Bench) -> dict[str, float]:
    """What a probe finds. What it cannot do is the study's mistake."""
    try:
        return dict(probe.measure(bench))
    except (ValueError, Mistake) as error:
        raise Mistake(f"probes.{label}: {error}") from error
