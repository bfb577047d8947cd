"""Watching every level on the same held-out samples: is it alive?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from hjepa import collapse
from hjepa.collapse import Reading
from hjepa.contracts import Outcome
from hjepa.loading import Source
from hjepa.stack import Pass, Stack

SAMPLES = 256
"""Held-out samples that are looked at: enough for the rank of some hundred dimensions."""


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
            count = min(SAMPLES, len(sources[label].dataset.split("valid")))
            self.batches[label] = sources[label].look("valid", 0, count, device)
        self.initial: dict[str, float] = {}

    @torch.no_grad()
    def look(self, step: int, settled: bool) -> Look:
        """Diagnostics and a verdict for every level that is trained."""
        self.stack.eval()
        outcomes = Pass(self.stack, self.batches, step, whole=True).outcomes()
        self.stack.train()
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
        ratio = reading.std_ratio(self._start(level, name, reading))
        return {**asdict(reading), "gain": reading.gain, "std_ratio": ratio}

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
