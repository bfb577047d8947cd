"""A level whose embeddings of two noisy views of an image shall agree (the content branch of MC-JEPA: VICReg)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from hjepa.contracts import Build, Encoder, Energy, Here, NonNegative, Outcome, Pair, Prevention, Spec, States
from hjepa.nn.preventions import Preventions
from hjepa.nn.states import states_of
from hjepa.randomness import normal


class Agree(nn.Module):
    """noise: standard deviation of what is added to each view; states are those of clean images."""

    def __init__(
        self,
        spec: Spec,
        *,
        encoder: Build[Encoder],
        energy: Build[Energy],
        prevention: Sequence[Build[Prevention]] = (),
        noise: NonNegative = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = encoder(spec)
        self.spec = spec.encoded(self.encoder.spec)
        self.energy, self.preventions = energy(self.spec), Preventions(self.spec, prevention)
        self.preventions.bind(self.encoder)
        self.noise, self.needs = noise, 1

    def encode(self, below: States) -> States:
        return states_of(self.encoder, below)

    def forward(self, here: Here) -> Outcome:
        first, second = (self._viewed(here, stream) for stream in ("first view", "second view"))
        energy = self.energy(first, second).mean(dim=2)
        with torch.no_grad():
            trivial = self.energy(first, second.mean(dim=0, keepdim=True)).mean(dim=2)
        both = torch.cat((first, second), dim=1)
        terms = {"agreement": energy.mean(), **self.preventions.terms(Pair(first, second, both), here)}
        return Outcome(energy, trivial, terms, {"states": both.detach().flatten(0, 2)})

    def _viewed(self, here: Here, stream: str) -> torch.Tensor:
        image = here.below.maps[0]
        noise = self.noise * normal(here.key, stream, tuple(image.shape[1:]))
        return states_of(self.encoder, replace(here.below, maps=(image + noise,))).tokens
