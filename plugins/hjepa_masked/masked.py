"""A level that predicts the states of what is masked from the states of what is not (I-JEPA, arXiv:2301.08243; V-JEPA,
arXiv:2404.08471; data2vec, arXiv:2202.03555).

The encoder sees the context alone: what is masked is gone before anything mixes tokens. Targets are the states of all tokens, as a
prevention gives them (a teacher that follows the encoder, as a rule), looked at once a step for all families of masks.
The energy falls to zero on constant states: what keeps the level alive is its `prevention`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa.contracts import (
    Build,
    Energy,
    Here,
    MaskableEncoder,
    Masking,
    Outcome,
    Packed,
    Pair,
    Prevention,
    SetPredictor,
    Spec,
    States,
)
from hjepa.nn.packing import row_keys, sets, taken
from hjepa.nn.preventions import Preventions
from hjepa.nn.states import states_of
from hjepa.nn.statistics import at_least_float32
from hjepa_masked.picture import draw

ROWS = 8192
"""Tokens that are looked at for diagnostics, at most."""


class Masked(nn.Module):
    """Reads images, clips or tokens, each window as one step, and fills in what the masking hides of each step.

    encoder, predictor, masking, energy, prevention: components. layers: of the encoder, whose mean is the target, by default its
    last states. normalize: targets, or each of those layers, are normed over their width first, without a learned scale.

    The preventions see what is predicted and its targets (M, D) of all families, one behind the other, and as `embedding` the
    states of the contexts (M, D).
    """

    def __init__(
        self,
        spec: Spec,
        *,
        encoder: Build[MaskableEncoder],
        predictor: Build[SetPredictor],
        masking: Build[Masking],
        energy: Build[Energy],
        prevention: Sequence[Build[Prevention]] = (),
        layers: tuple[str, ...] = (),
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder(spec)
        self.spec = spec.encoded(self.encoder.spec)
        self.masking = masking(self.spec)
        self.predictor = predictor(self.spec, self.masking.families)
        self.energy, self.preventions = energy(self.spec), Preventions(self.spec, prevention)
        self.preventions.bind(self.encoder)
        self.layers, self.normalize, self.needs, self.window = layers, normalize, 1, spec.window

    def encode(self, below: States) -> States:
        """What it reads (B, T, ...) -> its states (B, T, N, D), with nothing masked."""
        return states_of(self.encoder, below)

    def forward(self, here: Here) -> Outcome:
        """One step of training: energies (B, T) as means over the sets of a row and over families, and the weighted terms."""
        targets, time = self._targets(here), here.below.time
        lead = None if here.condition is None else here.condition.expand(*time.shape, -1).flatten(0, 1)
        masks = self._masks(here, targets)
        told = [self._told(here.below, context, _joined(asked), lead) for context, *asked in masks.values()]
        right = [taken(targets.tokens, one.asked).values for one in told]
        energy = self._energy(told, [one.filled.values for one in told], right)
        pair = Pair(_values(one.filled for one in told), torch.cat(right), _values(one.seen for one in told))
        terms = {"prediction": energy.mean(), **self.preventions.terms(pair, here)}
        trivial, shuffled = self._baselines(told, targets, right)
        embeddings = {} if self.training else _embeddings(here.states)
        return Outcome(energy.view(time.shape), trivial.view(time.shape), terms, embeddings, shuffled)

    def draw(self, here: Here, figure: Any) -> None:
        """What is hidden of images, and principal components of their states; nothing where there is no map, or no place on it."""
        if not here.below.maps or len(self.spec.grid) not in (2, 3):
            return
        states, targets = {"encoder": here.states}, self.preventions.targets(here)
        if not torch.equal(targets.tokens, here.states.tokens):
            states["teacher"] = targets
        draw(figure, here.below, self.window, self._masks(here, targets), states)

    def _masks(self, here: Here, states: States) -> dict[str, list[Packed]]:
        valid = None if states.valid is None else states.valid.flatten(0, 1)
        return self.masking.sample(row_keys(here.key, here.below.time), valid)

    def _targets(self, here: Here) -> States:
        """The states (B, T, N, D) that predictions are compared with, normed."""
        if not self.layers:
            given = self.preventions.targets(here)
            return replace(given, tokens=self._normed(given.tokens))

        def view(encoder: Any) -> States:
            features = (encoder or self.encoder)(here.below, self.layers)
            tokens = torch.stack([self._normed(layer) for layer in features.layers.values()]).mean(dim=0)
            return States(tokens, here.below.time, self.spec.grid, features.valid)

        own = partial(view, self.encoder)
        return self.preventions.targets(Here(lambda: here.below, own, view, here.key, here.step_key, here.step))

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(at_least_float32(x), x.shape[-1:]) if self.normalize else x

    def _told(self, below: States, context: Packed, asked: Packed, lead: Tensor | None) -> Told:
        seen = self.encoder.encode_kept(below, context)
        return Told(context, asked, seen, self.predictor(seen, asked, lead))

    def _energy(self, told: Sequence[Told], values: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """(B*T,): of values at what was asked for, each family's (M, D): the mean over the sets of a row, then over families."""
        each = zip(told, values, right, strict=True)
        return torch.stack([_row_means(self.energy(one, other), family) for family, one, other in each]).mean(dim=0)

    @torch.no_grad()
    def _baselines(self, told: Sequence[Told], targets: States, right: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """(B*T,): the energy of the mean of the context's targets, and (B, T) that of the targets of the sample before.

        The latter only in evaluation mode, and where there is another sample.
        """
        trivial = self._energy(told, [_mean_of_context(one, targets) for one in told], right)
        batch = len(targets.time)
        if self.training or batch == 1:
            return trivial, None
        wrong = targets.rows(torch.arange(batch, device=targets.time.device).roll(1))
        others = [taken(wrong.tokens, one.asked).values for one in told]
        return trivial, self._energy(told, [one.filled.values for one in told], others).view(targets.time.shape)


class Told(NamedTuple):
    """What is known of one family of masks."""

    context: Packed
    """Which tokens are seen: flat indices, a set for each row."""
    asked: Packed
    """Which are asked for: flat indices, any number of sets a row."""
    seen: Packed
    """The states of the context."""
    filled: Packed
    """What the predictor says of those that are asked for."""


def _joined(several: Sequence[Packed]) -> Packed:
    """All sets, one behind the other."""
    first = several[0]
    if len(several) == 1:
        return first
    parts = [torch.cat([getattr(one, name) for one in several]) for name in ("values", "lengths", "positions", "row")]
    return Packed(parts[0], parts[1], parts[2], parts[3], first.family)


def _values(several: Iterable[Packed]) -> Tensor:
    return torch.cat([one.values for one in several])


def _set_means(x: Tensor, lengths: Tensor) -> Tensor:
    """x (M, ...) -> its mean over each set (sets, ...); 0 of an empty one."""
    total = torch.segment_reduce(x, "sum", lengths=lengths)
    return total / lengths.clamp(min=1).view(-1, *[1] * (x.dim() - 1))


def _row_means(x: Tensor, told: Told) -> Tensor:
    """x (M,) of what is asked for -> (rows,): the mean over each set, then over the sets of a row that are not empty."""
    rows = len(told.context.lengths)
    there = (told.asked.lengths > 0).view(-1, rows).sum(dim=0)
    return _set_means(x, told.asked.lengths).view(-1, rows).sum(dim=0) / there.clamp(min=1)


def _mean_of_context(told: Told, targets: States) -> Tensor:
    """(M, D) at what is asked for: the mean of the targets of the row's context."""
    means = _set_means(at_least_float32(taken(targets.tokens, told.context).values), told.context.lengths)
    return means[told.asked.row[sets(told.asked)]]


@torch.no_grad()
def _embeddings(states: States) -> dict[str, Tensor]:
    """`pooled` (B*T, D): means over tokens. `tokens` (R, D): some of them. Both less what is the same in all samples.

    States that only say where a token lies spread as well, and most of what they say is that: they would look alive.
    """
    tokens = at_least_float32(states.tokens).flatten(0, 1)
    there = torch.ones_like(tokens[..., 0], dtype=torch.bool) if states.valid is None else states.valid.flatten(0, 1)
    counted, tokens = there[..., None].float(), tokens.masked_fill(~there[..., None], 0)
    centred = (tokens - tokens.sum(dim=0) / counted.sum(dim=0).clamp(min=1)) * counted
    pooled = centred.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    chosen = centred[there]
    return {"pooled": pooled, "tokens": chosen[:: -(-len(chosen) // ROWS) | 1]}  # odd: no column of an even grid is left out
