"""Watching every level on the same held-out samples: is it alive?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from hjepa import collapse
from hjepa.collapse import Reading
from hjepa.contracts import Outcome
from hjepa.loading import Source
from hjepa.stack import Pass, Stack

SAMPLES = 256
"""Held-out samples that are looked at: enough for the rank of some hundred dimensions."""


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
    """Looks at a stack, always at the same samples. `initial` is what a checkpoint keeps of it: the spread at the start."""

    def __init__(self, stack: Stack, sources: Mapping[str, Source], device: torch.device) -> None:
        self.stack = stack
        used = {stack.nodes[label].source for label in stack.trained}
        self.batches = {}
        for label in sorted(used):
            self.batches[label] = sources[label].look("valid", 0, sources[label].count("valid", SAMPLES), device)
        self.initial: dict[str, float] = {}

    def look(self, step: int, settled: bool) -> Look:
        """Diagnostics and a verdict for every level that is trained."""
        with at_rest(self.stack):
            outcomes = Pass(self.stack, self.batches, step, whole=True).outcomes()
        metrics: dict[str, float] = {}
        verdicts: dict[str, str] = {}
        spectra: dict[str, list[float]] = {}
        for level, outcome in outcomes.items():
            readings = self._readings(outcome)
            verdicts[level] = self._verdict(level, readings, settled)
            for name, reading in readings.items():
                prefix = f"collapse/{level}/" + (f"{name}." if name != next(iter(readings)) else "")
                metrics |= {prefix + key: value for key, value in self._diagnostics(level, name, reading).items()}
            spectra[level] = collapse.spectrum(next(iter(outcome.embeddings.values())))
        return Look(metrics, verdicts, spectra)

    def _readings(self, outcome: Outcome) -> dict[str, Reading]:
        energy, trivial = float(outcome.energy.mean()), float(outcome.trivial.mean())
        return {
            name: Reading(**collapse.measure(embedding), energy=energy, trivial=trivial)
            for name, embedding in outcome.embeddings.items()
        }

    def _diagnostics(self, level: str, name: str, reading: Reading) -> dict[str, float]:
        start = self._start(level, name, reading)
        left = {"std_ratio": reading.std_ratio(start), "variance_left": reading.variance_left(start)}
        return {**asdict(reading), "gain": reading.gain, **left}

    def _start(self, level: str, name: str, reading: Reading) -> float:
        """The spread of the first look."""
        return self.initial.setdefault(f"{level}/{name}", reading.std)

    def _verdict(self, level: str, readings: dict[str, Reading], settled: bool) -> str:
        """The first embedding that is not healthy speaks for the level."""
        for name, reading in readings.items():
            words = collapse.verdict(reading, self._start(level, name, reading), settled)
            if words != "healthy":
                return words if len(readings) == 1 else f"{words} in {name}"
        return "healthy"
