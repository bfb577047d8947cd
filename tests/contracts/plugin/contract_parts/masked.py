"""A level that predicts the embeddings of masked tokens from those of the others (I-JEPA, V-JEPA, data2vec)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

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
from hjepa.nn.packing import row_keys, set_means, taken
from hjepa.nn.preventions import Preventions
from hjepa.nn.states import states_of

PARTS = ("values", "lengths", "positions", "row")


class Masked(nn.Module):
    """Each family has its own context; targets are shared. layers: whose normed mean is the target, by default the last."""

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
    ) -> None:
        super().__init__()
        self.encoder = encoder(spec)
        self.spec = spec.encoded(self.encoder.spec)
        self.masking = masking(self.spec)
        self.predictor = predictor(self.spec, self.masking.families)
        self.energy, self.preventions = energy(self.spec), Preventions(self.spec, prevention)
        self.preventions.bind(self.encoder)
        self.layers, self.needs = layers, 1

    def encode(self, below: States) -> States:
        return states_of(self.encoder, below)

    def forward(self, here: Here) -> Outcome:
        targets, time = self.targets(here), here.below.time
        valid = None if targets.valid is None else targets.valid.flatten(0, 1)
        lead = None if here.condition is None else here.condition.expand(*time.shape, -1).flatten(0, 1)
        mean = targets.tokens.detach().mean(dim=2, keepdim=True).expand_as(targets.tokens)
        found = []
        for context, *blocks in self.masking.sample(row_keys(here.key, time), valid).values():
            seen, asked = self.encoder.encode_kept(here.below, context), _joined(blocks)
            compared = self.predictor(seen, asked, lead), taken(targets.tokens, asked), taken(mean, asked)
            found.append((*compared, seen))
        predictions, right, means, contexts = zip(*found, strict=True)
        energy, trivial = self._energies(predictions, right), self._energies(means, right).detach()
        pair = Pair(_values(predictions), _values(right), _values(contexts))
        terms = {"prediction": energy.mean(), **self.preventions.terms(pair, here)}
        return Outcome(energy.view(time.shape), trivial.view(time.shape), terms, {"context": pair.embedding.detach()})

    def _energies(self, ones: Sequence[Packed], others: Sequence[Packed]) -> Tensor:
        """(B*T,): the mean over the sets of each row, and over families."""
        means = [set_means(self.energy(one.values, other.values), one) for one, other in zip(ones, others, strict=True)]
        rows = int(ones[0].row.max()) + 1
        return torch.stack([mean.view(-1, rows).mean(dim=0) for mean in means]).mean(dim=0)

    def targets(self, here: Here) -> States:
        if not self.layers:
            return self.preventions.targets(here)
        own = partial(self._layers, self.encoder, here.below)
        view = partial(self._layers, below=here.below)
        return self.preventions.targets(Here(lambda: here.below, own, view, here.key, here.step_key, here.step))

    def _layers(self, encoder: Any, below: States) -> States:
        given = encoder(below, self.layers)
        tokens = torch.stack([F.layer_norm(x, x.shape[-1:]) for x in given.layers.values()]).mean(dim=0)
        return States(tokens, below.time, self.spec.grid, given.valid)


def _joined(blocks: Sequence[Packed]) -> Packed:
    """All sets of a family as one, several a row."""
    values, lengths, positions, row = (torch.cat([getattr(one, name) for one in blocks]) for name in PARTS)
    return Packed(values, lengths, positions, row, blocks[0].family)


def _values(sets: Sequence[Packed]) -> Tensor:
    return torch.cat([one.values for one in sets])
