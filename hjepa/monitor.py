"""Watching every level on the same held-out samples: is it alive, and if not, why?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from hjepa import alarm, collapse, effects
from hjepa.alarm import Alarm, Facts
from hjepa.collapse import Reading
from hjepa.contracts import Outcome, States
from hjepa.effects import Effect
from hjepa.loading import Source
from hjepa.nn.preventions import Preventions
from hjepa.stack import Pass, Stack
from hjepa.verdicts import kind_of

SAMPLES = 256
"""Held-out samples that are looked at: enough for the rank of some hundred dimensions."""

FEW = 64
"""Held-out samples that effects are measured on."""


@contextmanager
def at_rest(stack: Stack) -> Iterator[None]:
    """Evaluation mode, without gradient; afterwards the stack is as it was."""
    mode = stack.training
    stack.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        stack.train(mode)


@dataclass(frozen=True)
class Look:
    """What was seen at one moment."""

    metrics: dict[str, float]
    verdicts: dict[str, str]
    spectra: dict[str, list[float]]


class Monitor:
    """Looks at a stack, always at the same samples. `initial` is what a checkpoint keeps of it: spread and energy at the start."""

    def __init__(self, stack: Stack, sources: Mapping[str, Source], device: torch.device) -> None:
        self.stack = stack
        used = {stack.nodes[label].source for label in stack.trained}
        self.batches = {}
        self.some = {}
        """As much of them as gradients are taken of: what a step of training has room for holds these twice."""
        for label in sorted(used):
            self.batches[label] = sources[label].look("valid", 0, sources[label].count("valid", SAMPLES), device)
            few = max(2, min(FEW, sources[label].keys.batch // 2))
            self.some[label] = {name: tensor[:few] for name, tensor in self.batches[label].items()}
        self.initial: dict[str, float] = {}
        self.told: set[tuple[str, str]] = set()

    def look(self, step: int, settled: bool) -> Look:
        """Diagnostics and a verdict for every level that is trained."""
        with at_rest(self.stack):
            outcomes = Pass(self.stack, self.batches, step, whole=True).outcomes()
        metrics: dict[str, float] = {}
        verdicts: dict[str, str] = {}
        spectra: dict[str, list[float]] = {}
        for level, outcome in outcomes.items():
            readings = self._readings(outcome)
            self._first_energy(level, float(outcome.energy.mean()))
            verdicts[level] = self._verdict(level, readings, step, settled)
            for name, reading in readings.items():
                prefix = f"collapse/{level}/" + (f"{name}." if name != next(iter(readings)) else "")
                metrics |= {prefix + key: value for key, value in self._diagnostics(level, name, reading).items()}
            spectra[level] = collapse.spectrum(next(iter(outcome.embeddings.values())))
        return Look(metrics, verdicts, spectra)

    def _readings(self, outcome: Outcome) -> dict[str, Reading]:
        energies = {name: float(energy.mean()) for name in collapse.ENERGIES if (energy := getattr(outcome, name)) is not None}
        return {name: Reading(**collapse.measure(embedding), **energies) for name, embedding in outcome.embeddings.items()}

    def _diagnostics(self, level: str, name: str, reading: Reading) -> dict[str, float]:
        start = self._start(level, name, reading)
        found = {**asdict(reading), "gain": reading.gain, "gap": reading.gap}
        found |= {"std_ratio": reading.std_ratio(start), "variance_left": reading.variance_left(start)}
        return {name: value for name, value in found.items() if value is not None}

    def _start(self, level: str, name: str, reading: Reading) -> float:
        """The spread of the first look."""
        return self.initial.setdefault(f"{level}/{name}", reading.std)

    def _first_energy(self, level: str, energy: float) -> float:
        """The energy of the first look."""
        return self.initial.setdefault(f"{level}.energy", energy)

    def _verdict(self, level: str, readings: dict[str, Reading], step: int, settled: bool) -> str:
        """The first embedding that is not healthy speaks for the level."""
        for name, reading in readings.items():
            start = self._start(level, name, reading)
            held = not collapse.fading(reading, start, settled) or self._held(level, step)
            words = collapse.verdict(reading, start, settled, held)
            if words != "healthy":
                return words if len(readings) == 1 else f"{words} in {name}"
        return "healthy"

    def _held(self, level: str, step: int) -> bool:
        """Whether anything keeps a level apart. Targets that a prevention gives may, and no single step shows it."""
        return self._giving(level) is not None or effects.held(self.effects(step, [level])[level])

    # --- why ---

    def alarms(self, look: Look, before: Mapping[str, str], step: int) -> list[Alarm]:
        """An alarm for each level that has collapsed since its verdict `before`; once for each way to collapse.

        A level at the edge of a verdict crosses it to and fro; who resumes a training may be told once more.
        """
        levels = [one for one in alarm.sounded(before, look.verdicts) if (one, kind_of(look.verdicts[one])) not in self.told]
        self.told |= {(level, kind_of(look.verdicts[level])) for level in levels}
        found = self.effects(step, levels) if levels else {}
        return [alarm.raised(level, self._facts(level, look, found[level], step)) for level in levels]

    def effects(self, step: int, levels: Sequence[str] | None = None) -> dict[str, dict[str, Effect]]:
        """level -> `<level>/<term>` -> what the term does to the level."""
        return effects.measured(self.stack, self.some, step, self.stack.trained if levels is None else levels)

    def _facts(self, level: str, look: Look, found: Mapping[str, Effect], step: int) -> Facts:
        node = self.stack.nodes[level]
        prefixes = tuple(f"{level}/{name}." for one in self._preventions(level) for name in one.names)
        with at_rest(self.stack):
            below = Pass(self.stack, self.batches, step, whole=True).here(level).below
        energy, first = look.metrics[f"collapse/{level}/energy"], self.initial[f"{level}.energy"]
        return Facts(
            verdict=look.verdicts[level],
            energy_left=energy / first if first > 0 else 1.0,
            varies=_varies(below),
            reads={name: look.verdicts[name] for name in node.reads if name in look.verdicts},
            effects=found,
            own=tuple(name for name in found if name.startswith(prefixes)),
            giving=self._giving(level),
            latent=bool(self.stack.composer.spec(level, node.source).latent),
        )

    def _preventions(self, level: str) -> list[Preventions]:
        return [module for module in self.stack.level(level).modules() if isinstance(module, Preventions)]

    def _giving(self, level: str) -> str | None:
        """The prevention that gives the targets of a level."""
        return next((one.giving for one in self._preventions(level) if one.giving), None)


def _varies(below: States) -> float:
    """How much of the scale of what a level reads is spread over samples and steps; the largest share of its parts."""
    streams = [below.tokens, *below.maps] if below.tokens.numel() else below.maps
    shares = [_varies(part) for part in below.parts]
    for rows in (stream.flatten(0, 1).flatten(1).double() for stream in streams):
        rms = rows.square().mean().sqrt()
        shares.append(float((rows - rows.mean(0)).square().mean().sqrt() / rms) if rms > 0 else 0.0)
    return max(shares, default=0.0)
