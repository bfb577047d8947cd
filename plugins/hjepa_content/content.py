"""A level whose states of two views of the same thing shall agree: joint embedding.

Without a predictor the embedding of one view is the prediction of the other's (VICReg, arXiv:2105.04906; Barlow Twins,
arXiv:2103.03230); with one, it predicts the other's from it (BYOL, arXiv:2006.07733; SimSiam, arXiv:2011.10566; LeCun 2022, section 4).
All of it falls to zero on constant states: what keeps the level alive is its `prevention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from hjepa.contracts import Build, Count, Encoder, Energy, Here, Outcome, Pair, Prevention, Spec, States, StepPredictor
from hjepa.nn.preventions import Preventions
from hjepa.nn.projector import projected, projector
from hjepa.nn.states import states_of
from hjepa.schedules import Schedule


class Content(nn.Module):
    """Reads two streams, `reads: [one view, the other]`. Its states, for probes and levels above, are those of the first view.

    encoder, energy, prevention: components; the encoder is the same for both views. expander: widths of a perceptron that the states
    of both views, and of a teacher, go through before they are compared and kept apart, so that the states themselves may know what
    the views do not share (VICReg's expander, the projection head of SimCLR); none where it has none. predictor: takes one step, which
    leads from one view to the other; none where embeddings are compared as they are. symmetric: each view is predicted from the
    other, and not only the second from the first. weight_of_agreement: of the energy; 0 where a prevention brings the whole objective.

    The preventions see both views, one behind the other along the axis of time: `embedding` is (B, 2T, N, D), and where
    symmetric so are `prediction` and `target`: row t of the first half compares with the second view, and the other way round.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        encoder: Build[Encoder],
        energy: Build[Energy],
        prevention: Sequence[Build[Prevention]] = (),
        expander: tuple[Count, ...] = (),
        predictor: Build[StepPredictor] | None = None,
        symmetric: bool = True,
        weight_of_agreement: Schedule = Schedule.of(1.0),
    ) -> None:
        super().__init__()
        first = replace(_one_of_two(spec), condition=spec.condition)
        self.encoder = encoder(first)
        self.spec = first.encoded(self.encoder.spec)
        if not self.spec.width:
            raise ValueError("content compares tokens, and its encoder gives none; use an encoder that gives tokens")
        self.expander = projector(self.spec.width, expander)
        compared = replace(
            self.spec, width=projected(self.spec.width, expander), actions=0
        )  # nothing is done between two views
        self.energy = energy(compared)
        self.predictor = predictor(replace(compared, ticks=(0,))) if predictor else None
        self.preventions = Preventions(compared, prevention)
        self.preventions.bind(self.encoder)
        self.symmetric, self.weight, self.needs = symmetric, weight_of_agreement, 1

    def encode(self, below: States) -> States:
        """Two views (B, T, ...) -> the states of the first (B, T, N, D)."""
        return self.view(self.encoder, below)

    def view(self, encoder: Encoder, below: States) -> States:
        """The same by another encoder."""
        return states_of(encoder, below.parts[0])

    def forward(self, here: Here) -> Outcome:
        """One step of training: energies (B, T), over both directions, and the weighted terms."""
        own = _stacked((here.states, states_of(self.encoder, here.below.parts[1])))
        both = self._both(here, own)
        states, targets = both.states, _swapped(self.preventions.targets(both))
        prediction = self._predicted(states, both.condition)
        if not self.symmetric:
            prediction, targets = prediction[:, : here.states.steps], targets.slice(0, here.states.steps)
        target = targets.tokens
        energy = self._energy(prediction, target, targets.valid, here.states.steps)
        with torch.no_grad():
            mean = target.mean(dim=0, keepdim=True).expand_as(target)
            trivial = self._energy(mean, target, targets.valid, here.states.steps)
            shuffled = None if self.training or len(target) < 2 else self._shuffled(prediction, targets, here.states.steps)
        terms = {"agreement": self.weight(here.step) * energy.mean()}
        terms |= self.preventions.terms(Pair(prediction, target, states.tokens), both)
        embeddings = {"states": own.tokens.detach().flatten(0, 2)}
        return Outcome(energy, trivial, terms, embeddings, shuffled)

    def _both(self, here: Here, own: States) -> Here:
        """The same step where both views are seen, one behind the other, as they are compared: whoever encodes them does it at once."""

        @cache
        def below() -> States:
            return _stacked(here.below.parts)

        @cache
        def states() -> States:
            return self._expanded(own)

        def view(encoder: nn.Module | None) -> States:
            return states() if encoder is None else self._expanded(states_of(encoder, below()))

        def condition() -> Tensor | None:
            lead, steps = here.condition, here.below.steps
            return None if lead is None else lead.expand(-1, steps, -1).repeat(1, 2, 1)

        return Here(below, states, view, here.key, here.step_key, here.step, condition)

    def _expanded(self, states: States) -> States:
        return replace(states, tokens=self.expander(states.tokens))

    def _predicted(self, states: States, condition: Tensor | None) -> Tensor:
        """From each view (B, 2T, N, D) the other; what steps in time there are is folded into the batch."""
        if self.predictor is None:
            return states.tokens
        valid = None if states.valid is None else states.valid.flatten(0, 1)[:, None]
        single = States(states.tokens.flatten(0, 1)[:, None], states.time.flatten()[:, None], states.grid, valid)
        lead = None if condition is None else condition.flatten(0, 1)[:, None]
        predicted, _ = self.predictor.step(self.predictor.start(single, lead))
        return predicted.view_as(states.tokens)

    def _energy(self, prediction: Tensor, target: Tensor, valid: Tensor | None, steps: int) -> Tensor:
        """(B, T): the mean over directions, and over the tokens that are valid."""
        energy = self.energy(prediction, target)
        if valid is None:
            energy = energy.mean(dim=2)
        else:
            counted = valid.to(energy.dtype)
            energy = (energy * counted).sum(dim=2) / counted.sum(dim=2).clamp(min=1)
        return energy.view(len(energy), -1, steps).mean(dim=1)

    def _shuffled(self, prediction: Tensor, targets: States, steps: int) -> Tensor:
        """(B, T): the energy where each sample has the targets of the one before it."""
        order = torch.arange(len(prediction), device=prediction.device).roll(1)
        other = targets.rows(order)
        return self._energy(prediction, other.tokens, other.valid, steps)


def _one_of_two(spec: Spec) -> Spec:
    """What one view is; ValueError where there are not two, or where they differ."""
    if len(spec.parts) != 2:
        read = f"{len(spec.parts)} streams" if spec.parts else "one stream"
        raise ValueError(f"content compares two views, and it reads {read}; write `reads: [one view, the other]`")
    first, second = spec.parts
    if first != second:
        raise ValueError("content encodes both views alike, and the two streams that it reads have different shapes")
    return first


def _stacked(views: Sequence[States]) -> States:
    """Two views (B, T, ...) one behind the other, (B, 2T, ...). Nothing was done between them: there are no actions."""
    first, second = views
    return States(
        tokens=torch.cat((first.tokens, second.tokens), dim=1),
        time=torch.cat((first.time, second.time), dim=1),
        grid=first.grid,
        valid=_with_valid(first, second),
        maps=tuple(torch.cat(maps, dim=1) for maps in zip(first.maps, second.maps, strict=True)),
    )


def _with_valid(first: States, second: States) -> Tensor | None:
    """(B, 2T, N), or None where both views have all their tokens."""
    if first.valid is None and second.valid is None:
        return None
    given = (
        torch.ones_like(one.tokens[..., 0], dtype=torch.bool) if one.valid is None else one.valid for one in (first, second)
    )
    return torch.cat(tuple(given), dim=1)


def _swapped(both: States) -> States:
    """The second view first."""
    half = both.steps // 2
    return _stacked((both.slice(half, both.steps), both.slice(0, half)))
