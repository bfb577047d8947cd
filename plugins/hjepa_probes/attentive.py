"""A learned query that looks at the frozen tokens and names a class: the attentive probe (V-JEPA, arXiv:2404.08471).

n samples    N tokens    D width    S settings that are fitted side by side    H heads    K classes
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa.contracts import Count, Fraction, NonNegative, Observation, Observer, Positive, Whole
from hjepa.randomness import Key, normal, permuted
from hjepa_probes.classes import accuracy, chance, draw_confusion, labels_of, standard
from hjepa_probes.readout import Features

WIDER = 4
"""The hidden layer of the MLP, in widths of a token."""
AT_ONCE = 256
"""Samples that are read at once where nothing is learned."""


class Attentive:
    """Reads a class from all tokens of a step: cross attention from one learned query, an MLP, a linear layer.

    Every learning rate is tried with every weight decay, all in one pass over the tokens; part of the training samples is held
    in, and tells which setting is best. The test samples are only ever read by that one. Tokens are standardised by the training
    tokens' statistics, in place of the reference's LayerNorm, so that how long a token is can be read too. Two tokens that are
    swapped, or all of them said twice, change nothing: where a token lies must be said by the token.

    Options:
        level: the level whose states are read.
        target: a key of the batch, with one whole number a sample.
        features: of the level as it is (`online`), or of its teacher (`target`).
        step: the tokens of the `last` step, or of `all` of them.
        heads: of the attention; where the width cannot be shared by so many, the next smaller number that it can be shared by.
        epochs: passes over the training samples; the learning rate falls to 0 along a cosine.
        batch: samples of one step of AdamW.
        lr: learning rates to try.
        weight_decay: weight decays to try.
        held_in: which share of the training samples chooses, and is not fitted.
        seed: of the first weights and of the order.

    Scores, of test samples: `accuracy`; `chance`, what naming the commonest training class scores; `lr` and `weight_decay`, which
    were chosen.
    """

    def __init__(
        self,
        *,
        level: str,
        target: str,
        features: Features = "online",
        step: Literal["last", "all"] = "last",
        heads: Count = 4,
        epochs: Count = 20,
        batch: Count = 64,
        lr: Sequence[Positive] = (1e-3, 3e-3, 1e-2),
        weight_decay: Sequence[NonNegative] = (0.01, 0.1, 1.0),
        held_in: Fraction = 0.2,
        seed: Whole = 0,
    ) -> None:
        if not lr or not weight_decay:
            raise ValueError("at least one lr and one weight_decay are needed")
        if not 0 < held_in < 1:
            raise ValueError(f"held_in is {held_in:g}; some of the samples must choose, and some be fitted")
        self.level, self.target, self.features, self.step = level, target, features, step
        self.heads, self.epochs, self.batch, self.held_in = heads, epochs, batch, held_in
        self.settings, self.key = list(itertools.product(lr, weight_decay)), Key.of("attentive", seed)

    def measure(self, observer: Observer) -> dict[str, float]:
        train, test = (self._seen(observer, split) for split in ("train", "test"))
        best, predicted = self._predicted(train, test)
        scores = {"accuracy": accuracy(predicted, test.labels), "chance": chance(train.labels, test.labels)}
        return scores | dict(zip(("lr", "weight_decay"), self.settings[best], strict=True))

    def draw(self, observer: Observer, figure: Any) -> None:
        """The confusion matrix. `figure`: a matplotlib figure or subfigure."""
        train, test = (self._seen(observer, split) for split in ("train", "test"))
        _, predicted = self._predicted(train, test)
        right = f"{100 * accuracy(predicted, test.labels):.0f} % right"
        draw_confusion(figure, predicted, test.labels, f"{self.target}, by attention to {self.level}: {right}")

    def _seen(self, observer: Observer, split: str) -> Seen:
        return _seen(observer.observe(self.level, split, self.features), self.target, self.step)

    def _predicted(self, train: Seen, test: Seen) -> tuple[int, Tensor]:
        """The place of the best setting, and the class (n,) that it gives to each test sample."""
        order = permuted(torch.arange(len(train.labels)), len(train.labels), self.key.fold("held in"))
        held = max(1, round(self.held_in * len(order)))
        choosing, fitting = train.at(order[:held]), train.at(order[held:])
        mean, scale = standard(train.tokens[train.there])
        reader = Reader(mean, scale, self.heads, int(train.labels.max()) + 1, len(self.settings), self.key)
        with torch.enable_grad():
            self._fit(reader, fitting)
        best = _best(reader, choosing)
        return best, reader.classes(test)[best]

    def _fit(self, reader: Reader, seen: Seen) -> None:
        groups = [
            {"params": own, "lr": lr, "weight_decay": decay}
            for own, (lr, decay) in zip(reader.weights(), self.settings, strict=True)
        ]
        optimizer = torch.optim.AdamW(groups)
        count = len(seen.labels)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * math.ceil(count / self.batch))
        for epoch in range(self.epochs):
            order = permuted(torch.arange(count), count, self.key.fold("order", epoch))
            for rows in torch.split(order, self.batch):
                some = seen.at(rows)
                logits = reader(some)
                loss = F.cross_entropy(logits.flatten(0, 1), some.labels.repeat(len(logits)), reduction="sum") / len(rows)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # a sum over settings: none of them feels another
                optimizer.step()
                schedule.step()


@dataclass(frozen=True)
class Seen:
    """Tokens of a split, and what they shall say."""

    tokens: Tensor
    """(n, N, D)."""
    there: Tensor
    """(n, N) bool."""
    labels: Tensor
    """(n,) int64."""

    def at(self, rows: Tensor) -> Seen:
        """Some of the samples."""
        return Seen(self.tokens[rows], self.there[rows], self.labels[rows])


def _seen(seen: Observation, target: str, step: str) -> Seen:
    tokens, valid = seen.states.tokens.detach(), seen.states.valid
    there = torch.ones(tokens.shape[:3], dtype=torch.bool) if valid is None else valid
    chosen = slice(-1, None) if step == "last" else slice(None)
    return Seen(tokens[:, chosen].flatten(1, 2), there[:, chosen].flatten(1, 2), labels_of(seen, target))


def _best(reader: Reader, seen: Seen) -> int:
    """The setting that names most samples right, of those the one with the least cross-entropy."""
    with torch.no_grad():
        logits = torch.cat([reader(some) for some in _parts(seen)], dim=1)
    right = logits.argmax(2) == seen.labels
    entropy = F.cross_entropy(logits.flatten(0, 1), seen.labels.repeat(len(logits)), reduction="none").view_as(right)
    found = list(zip(right.sum(1).tolist(), (-entropy.mean(1)).tolist(), strict=True))
    return found.index(max(found))


def _parts(seen: Seen) -> Iterator[Seen]:
    return (seen.at(rows) for rows in torch.split(torch.arange(len(seen.labels)), AT_ONCE))


class Reader:
    """All settings side by side, each with weights of its own; all of them begin alike.

    As there is one query, keys and values are never made for each token: a head's key weights and the query fold into the one
    direction that it looks along, and its values are made of the tokens' weighted mean. It is the same sum, and a share of it.
    """

    def __init__(self, mean: Tensor, scale: Tensor, heads: int, classes: int, settings: int, key: Key) -> None:
        width = len(mean)
        self.mean, self.scale = mean, scale
        heads = max(count for count in range(1, heads + 1) if width % count == 0)
        shapes = {
            "query": (width,),
            "look": (heads, width),
            "value": (heads, width, width // heads),
            "merge": (width, width),
            "norm": (width,),
            "shift": (width,),
            "up": (width, WIDER * width),
            "up_shift": (WIDER * width,),
            "down": (WIDER * width, width),
            "down_shift": (width,),
            "out": (width, classes),
            "out_shift": (classes,),
        }
        first = {name: _first(key, name, shape) for name, shape in shapes.items()}
        self.own = [{name: value.clone().requires_grad_() for name, value in first.items()} for _ in range(settings)]

    def weights(self) -> list[list[Tensor]]:
        """Of each setting."""
        return [list(own.values()) for own in self.own]

    def __call__(self, seen: Seen) -> Tensor:
        """(S, n, K): logits."""
        w = {name: torch.stack([own[name] for own in self.own]) for name in self.own[0]}
        x = ((seen.tokens - self.mean) * self.scale).masked_fill(~seen.there[..., None], 0)
        score = torch.einsum("bnd,shd->bshn", x, w["look"])
        share = score.masked_fill(~seen.there[:, None, None], torch.finfo(score.dtype).min).softmax(dim=-1)
        seen_by = torch.einsum("bshn,bnd->sbhd", share, x)
        value = torch.einsum("sbhd,shde->sbhe", seen_by, w["value"]).flatten(2)
        y = w["query"][:, None] + value @ w["merge"]
        normed = F.layer_norm(y, y.shape[-1:]) * w["norm"][:, None] + w["shift"][:, None]
        hidden = F.gelu(torch.baddbmm(w["up_shift"][:, None], normed, w["up"]))
        y = y + torch.baddbmm(w["down_shift"][:, None], hidden, w["down"])
        return torch.baddbmm(w["out_shift"][:, None], y, w["out"])

    def classes(self, seen: Seen) -> Tensor:
        """(S, n): the class that each setting gives."""
        with torch.no_grad():
            return torch.cat([self(some).argmax(dim=2) for some in _parts(seen)], dim=1)


def _first(key: Key, name: str, shape: tuple[int, ...]) -> Tensor:
    """Small for what looks, so that at first all tokens are seen alike; else of the size that keeps the variance."""
    if name == "norm":
        return torch.ones(shape)
    if name.endswith("shift"):
        return torch.zeros(shape)
    return normal(key, name, shape) * (0.02 if name in ("query", "look") else shape[-2] ** -0.5)
