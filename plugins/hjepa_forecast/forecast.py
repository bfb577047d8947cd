"""A level that predicts its own future states at its own clock.

Joint-embedding prediction over time (LeCun 2022, section 4): the states of a level are encoded from what it reads, step by step, and
a predictor says the next state from those before it. Teacher forcing trains one step from true states; a rollout of K steps, each from
the one predicted before (Assran et al. 2025, V-JEPA 2-AC; Sobal et al. 2025, PLDM), trains the predictor on its own mistakes.
Both terms fall to zero on constant states: what keeps the level alive is its `prevention`.

With a latent, z says what the steps before cannot: the energy of a step is F(x, y) = E(x, y, z) + R(z), where z is inferred from
the step that came (LeCun 2022, section 4.4), and the futures that may come are predicted with z drawn from its prior.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    Latent,
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
    default they are joined); latent: what the prediction cannot know, by default nothing; weight_of_prediction: of the
    teacher-forced term; rollout: steps K that are predicted from predicted states, 0 for none; weight_of_rollout: of their mean
    energy; context: true steps that a rollout starts from at least.

    z of step t leads to step t + 1. A rollout in training takes the z that were inferred for the same steps, without gradient.
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
        latent: Build[Latent] | None = None,
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
        known = replace(spec.encoded(self.encoder.spec), actions=actions)
        self.latent = latent(known) if latent else None
        self.spec = replace(known, latent=self.latent.width if self.latent else 0)
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
        """One step of training: energies (B, T-1) of steps 1 to T-1, and the weighted terms.

        `energy` is E + R(z), without a latent just E; `trivial` needs no z. `shuffled` is the same with the targets of the sample
        before, z inferred anew for them; the term `prediction` is of E alone, and `latent` is what z is trained with.
        """
        states, targets = here.states, self.preventions.targets(here)
        z, penalty = self._inferred(here, targets)
        prediction = self.predictor(states, here.condition, z)
        fit = self._energy(prediction, targets)
        with torch.no_grad():
            trivial = self._energy(states.tokens[:, :-1], targets)
        terms = {"prediction": fit.mean()}
        if self.horizon:
            terms["rollout"] = self._rollout_energy(here, targets, z).mean()
        terms = {name: self.weights[name](here.step) * term for name, term in terms.items()}
        if penalty is not None:
            terms["latent"] = penalty.mean()
        terms |= self.preventions.terms(Pair(prediction, targets.tokens[:, 1:], states.tokens), here)
        embeddings = {"states": states.tokens.detach().flatten(0, 2)}
        return Outcome(self._free(fit, z), trivial, terms, embeddings, self._shuffled(here, targets), self._logs(z))

    def _inferred(self, here: Here, targets: States) -> tuple[Tensor | None, Tensor | None]:
        """z (B, T-1, Z) for the targets, and what it is trained with (B, T-1); neither without a latent."""
        if self.latent is None:
            return None, None

        def energy_of(z: Tensor) -> Tensor:
            return self._energy(self.predictor(here.states, here.condition, z), targets)

        with _resting(self.predictor):
            return self.latent.infer(energy_of, _filled(here.states)[:, :-1], _filled(targets)[:, 1:], here.key)

    def _free(self, fit: Tensor, z: Tensor | None) -> Tensor:
        """(B, T-1): E + R(z)."""
        return fit if z is None or self.latent is None else fit + self.latent.penalty(z)

    @torch.no_grad()
    def _shuffled(self, here: Here, targets: States) -> Tensor | None:
        """(B, T-1): the energy of the targets of the sample before; none while training, and where there is one sample only."""
        batch = len(targets.time)
        if self.training or batch == 1:
            return None
        wrong = targets.rows(torch.arange(batch, device=targets.time.device).roll(1))
        z, _ = self._inferred(here, wrong)
        return self._free(self._energy(self.predictor(here.states, here.condition, z), wrong), z)

    def _logs(self, z: Tensor | None) -> dict[str, Tensor]:
        """What the latent says of the z of this batch."""
        logs = getattr(self.latent, "logs", None)
        if z is None or logs is None:
            return {}
        return {f"latent.{name}": value for name, value in logs(z.detach()).items()}

    def _energy(self, prediction: Tensor, targets: States) -> Tensor:
        """(B, T-1): of steps 1 to T-1 of the targets, the mean over the tokens that are valid."""
        return _mean(self.energy(prediction, targets.tokens[:, 1:]), None if targets.valid is None else targets.valid[:, 1:])

    def _rollout_energy(self, here: Here, targets: States, z: Tensor | None) -> Tensor:
        """(B, K): the energy of each step of a rollout that starts at a step keyed by the training step."""
        states = here.states
        start = int(randomness.integers(here.step_key, "start", self.context, states.steps - self.horizon + 1))
        leads = slice(start - 1, start - 1 + self.horizon)
        actions = None if states.actions is None else states.actions[:, leads]
        z = None if z is None else z.detach()[:, leads]
        rolled = self.rollout(states.slice(0, start), actions, self.horizon, _until(here.condition, start), z)
        target = targets.slice(start, start + self.horizon)
        return _mean(self.energy(rolled.tokens, target.tokens), target.valid)

    def rollout(
        self, start: States, actions: Tensor | None, steps: int, condition: Tensor | None = None, z: Tensor | None = None
    ) -> States:
        """`start` (B, T, N, D) -> the `steps` states that follow, each predicted from those before (B, steps, N, D)."""
        carry = self.start(start, condition)
        tokens, doubts = [], []
        for step in range(steps):
            action = None if actions is None else actions[:, step]
            predicted, carry = self.step(carry, action, None, None if z is None else z[:, step])
            tokens.append(predicted)
            doubts.append(self.doubt(carry))
        time = start.time[:, -1:] + self.spec.clock * torch.arange(1, steps + 1, device=start.time.device)
        said = [doubt for doubt in doubts if doubt is not None]
        return States(torch.stack(tokens, dim=1), time, start.grid, doubt=torch.stack(said, dim=1) if said else None)

    def start(self, states: States, condition: Tensor | None = None) -> Any:
        """A carry that has seen `states` (B, T, N, D)."""
        return self.predictor.start(states, condition)

    def step(
        self, carry: Any, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """The tokens (B, N, D) that `action` (B, A) leads to, and the carry that has seen them."""
        return self.predictor.step(carry, action, condition, z)

    def doubt(self, carry: Any) -> Tensor | None:
        """(B, N): how far apart predictors are of the step that was predicted last; none where there is one, and while they learn."""
        said = getattr(self.predictor, "doubt", None)
        return None if said is None or self.training else said(carry)

    def space(self, chunk: ActionSpace) -> ActionSpace:
        """What can be done in one own step: its macro-actions, or whatever can be done below in the meantime."""
        return self.macro_action.space(chunk) if self.macro_action else chunk


def _mean(energy: Tensor, valid: Tensor | None) -> Tensor:
    """Energies (B, K, N) -> (B, K): the mean over the tokens that are valid."""
    if valid is None:
        return energy.mean(dim=2)
    counted = valid.to(energy.dtype)
    return (energy * counted).sum(dim=2) / counted.sum(dim=2).clamp(min=1)


@contextmanager
def _resting(predictor: object) -> Iterator[None]:
    """In evaluation mode: what is compared is then the same function of z each time."""
    if not isinstance(predictor, nn.Module):
        yield
        return
    mode = predictor.training
    predictor.eval()
    try:
        yield
    finally:
        predictor.train(mode)


def _until(condition: Tensor | None, start: int) -> Tensor | None:
    """The part of a condition that belongs to the first `start` steps."""
    return condition if condition is None or condition.shape[1] == 1 else condition[:, :start]


def _filled(states: States) -> Tensor:
    """(B, T, N, D), zeros where a token is not valid."""
    return states.tokens if states.valid is None else states.tokens.masked_fill(~states.valid[..., None], 0)
