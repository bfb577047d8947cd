"""A forecast of several possible futures: z says which of them came true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hjepa.contracts import Build, Encoder, Energy, Here, Latent, Outcome, Pair, Prevention, Spec, States, StepPredictor
from hjepa.nn.preventions import Preventions
from hjepa.nn.states import states_of


class Guess(nn.Module):
    """While it learns, z is inferred from what came; without z a rollout takes zeros."""

    def __init__(
        self,
        spec: Spec,
        *,
        encoder: Build[Encoder],
        predictor: Build[StepPredictor],
        energy: Build[Energy],
        latent: Build[Latent],
        prevention: Sequence[Build[Prevention]] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder(spec)
        known = spec.encoded(self.encoder.spec)
        self.latent = latent(known)
        self.spec = replace(known, latent=self.latent.width)
        self.predictor, self.energy = predictor(self.spec), energy(self.spec)
        self.preventions = Preventions(self.spec, prevention)
        self.preventions.bind(self.encoder)
        self.needs = 2

    def encode(self, below: States) -> States:
        return states_of(self.encoder, below)

    def forward(self, here: Here) -> Outcome:
        states, target = here.states, self.preventions.targets(here).tokens[:, 1:]

        def energy_of(z: Tensor) -> Tensor:
            return self.energy(self.predictor(states, here.condition, z), target).mean(dim=2)

        z, penalty = self.latent.infer(energy_of, states.tokens[:, :-1], target, here.key)
        prediction = self.predictor(states, here.condition, z)
        energy = self.energy(prediction, target).mean(dim=2)
        with torch.no_grad():
            trivial = self.energy(states.tokens[:, :-1], target).mean(dim=2)
        terms = {"prediction": energy.mean(), "latent": penalty.mean()}
        terms |= self.preventions.terms(Pair(prediction, target, states.tokens), here)
        return Outcome(energy, trivial, terms, {"states": states.tokens.detach().flatten(0, 2)})

    def rollout(
        self, start: States, actions: Tensor | None, steps: int, condition: Tensor | None = None, z: Tensor | None = None
    ) -> States:
        carry, tokens = self.predictor.start(start, condition), []
        for step in range(steps):
            leads = [None if lead is None else lead[:, step] for lead in (actions, z)]
            predicted, carry = self.predictor.step(carry, leads[0], None, leads[1])
            tokens.append(predicted)
        time = start.time[:, -1:] + self.spec.clock * torch.arange(1, steps + 1, device=start.time.device)
        return States(torch.stack(tokens, dim=1), time, start.grid)
