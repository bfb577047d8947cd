"""A level that predicts its own future states at its own clock.

Joint-embedding prediction over time (LeCun 2022, section 4): the states of a level are encoded from what it reads, step by step, and
a predictor says the next state from those before it. Teacher forcing trains one step from true states; a rollout of K steps, each from
the one predicted before (Assran et al. 2025, V-JEPA 2-AC; Sobal et al. 2025, PLDM), trains the predictor on its own mistakes.
Both terms fall to zero on constant states: what keeps the level alive is its `prevention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hjepa import randomness
from hjepa.contracts import (
    ActionSpace,
    Build,
    Count,
    Encoder,
    Energy,
    Here,
    MacroAction,
    Outcome,
    Pair,
    Prevention,
    Spec,
    States,
    StepPredictor,
    Whole,
)
from hjepa.nn.preventions import Preventions
from hjepa.nn.states import states_of
from hjepa.schedules import Schedule


class Forecast(nn.Module):
    """Predicts its own next states.

    encoder, predictor, energy, prevention: components; macro_action: makes one action of the actions between two own steps (by
    default they are joined); weight_of_prediction: of the teacher-forced term; rollout: steps K that are predicted from predicted
    states, 0 for none; weight_of_rollout: of their mean energy; context: true steps that a rollout starts from at least.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        encoder: Build[Encoder],
        predictor: Build[StepPredictor],
        energy: Build[Energy],
        prevention: Sequence[Build[Prevention]] = (),
        macro_action: Build[MacroAction] | None = None,
        weight_of_prediction: Schedule = Schedule.of(1.0),
        rollout: Whole = 0,
        weight_of_rollout: Schedule = Schedule.of(1.0),
        context: Count = 1,
    ) -> None:
        super().__init__()
        if not spec.moves_on:
            said = "a forecast reads steps each of which has seen later input than the one before"
            raise ValueError(f"{said}; here they have seen up to the ticks {list(spec.ticks)}, so the future would leak")
        self.encoder = encoder(spec)
        self.macro_action = macro_action(spec) if macro_action else None
        actions = self.macro_action.width if self.macro_action else spec.actions
        self.spec = replace(spec.encoded(self.encoder.spec), actions=actions)
        self.predictor = predictor(self.spec)
        self.energy = energy(self.spec)
        self.preventions = Preventions(self.spec, prevention)
        self.preventions.bind(self.encoder)
        self.weights = {"prediction": weight_of_prediction, "rollout": weight_of_rollout}
        self.horizon, self.context = rollout, context
        self.needs = max(2, rollout + context)

    def encode(self, below: States) -> States:
        """What it reads (B, T, ...) -> its own states (B, T, N, D)."""
        states = states_of(self.encoder, below)
        if self.macro_action is None or below.actions is None:
            return states
        return replace(states, actions=self.macro_action(below.actions))

    def forward(self, here: Here) -> Outcome:
        """One step of training: energies (B, T-1) of steps 1 to T-1, and the weighted terms."""
        states, targets = here.states, self.preventions.targets(here)
        prediction, target = self.predictor(states, here.condition), targets.tokens[:, 1:]
        energy = self._energy(prediction, target, targets.valid)
        with torch.no_grad():
            trivial = self._energy(states.tokens[:, :-1], target, targets.valid)
        terms = {"prediction": energy.mean()}
        if self.horizon:
            terms["rollout"] = self._rollout_energy(here, targets).mean()
        terms = {name: self.weights[name](here.step) * term for name, term in terms.items()}
        terms |= self.preventions.terms(Pair(prediction, target, states.tokens), here)
        return Outcome(energy, trivial, terms, {"states": states.tokens.detach().flatten(0, 2)})

    def _energy(self, prediction: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T-1): the mean over the tokens that are valid."""
        energy = self.energy(prediction, target)
        if valid is None:
            return energy.mean(dim=2)
        counted = valid[:, 1:].to(energy.dtype)
        return (energy * counted).sum(dim=2) / counted.sum(dim=2).clamp(min=1)

    def _rollout_energy(self, here: Here, targets: States) -> Tensor:
        """(B, K): the energy of each step of a rollout that starts at a step keyed by the training step."""
        states = here.states
        start = int(randomness.integers(here.step_key, "start", self.context, states.steps - self.horizon + 1))
        actions = None if states.actions is None else states.actions[:, start - 1 : start - 1 + self.horizon]
        rolled = self.rollout(states.slice(0, start), actions, self.horizon, _until(here.condition, start))
        target = targets.tokens[:, start : start + self.horizon]
        return self.energy(rolled.tokens, target).mean(dim=2)

    def rollout(
        self, start: States, actions: Tensor | None, steps: int, condition: Tensor | None = None, z: Tensor | None = None
    ) -> States:
        """`start` (B, T, N, D) -> the `steps` states that follow, each predicted from those before (B, steps, N, D)."""
        carry = self.start(start, condition)
        tokens = []
        for step in range(steps):
            action = None if actions is None else actions[:, step]
            predicted, carry = self.step(carry, action, None, None if z is None else z[:, step])
            tokens.append(predicted)
        time = start.time[:, -1:] + self.spec.clock * torch.arange(1, steps + 1, device=start.time.device)
        return States(torch.stack(tokens, dim=1), time, start.grid)

    def start(self, states: States, condition: Tensor | None = None) -> Any:
        """A carry that has seen `states` (B, T, N, D)."""
        return self.predictor.start(states, condition)

    def step(
        self, carry: Any, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """The tokens (B, N, D) that `action` (B, A) leads to, and the carry that has seen them."""
        return self.predictor.step(carry, action, condition, z)

    def space(self, chunk: ActionSpace) -> ActionSpace:
        """What can be done in one own step: its macro-actions, or whatever can be done below in the meantime."""
        return self.macro_action.space(chunk) if self.macro_action else chunk


def _until(condition: Tensor | None, start: int) -> Tensor | None:
    """The part of a condition that belongs to the first `start` steps."""
    return condition if condition is None or condition.shape[1] == 1 else condition[:, :start]
