"""What each term of training does to each level: does it keep the level apart, or pull it together?

A small step of gradient descent on one term alone, in the level's own weights, changes a quantity q of the level by
-<gradient of q, gradient of the term>. Two quantities are looked at: the log of the level's spread, and the log of the number of
directions that it spreads in (the participation ratio of its covariance). The term may be another level's: an upper level whose
gradient flows down may be what keeps the level below alive, and one that shares an encoder may pull it together. An optimizer that
scales gradients weight by weight takes other steps, but rarely in another direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hjepa.contracts import Batch
from hjepa.stack import Pass, Stack

ACTS = 0.05
"""A term acts on a level where its effect is at least this share of the strongest one."""

HOLDS = 0.1
"""What keeps a level apart holds it where it is at least so many times as strong as what pulls it together. At rest both are
equally strong; where nothing is meant to hold, this is 0 but for noise."""

Gradients = Sequence[Tensor | None]


@dataclass(frozen=True)
class Effect:
    """Of one term on one level, for each unit of learning rate. Above 0 it keeps the level apart, below 0 it pulls it together."""

    spread: float
    """On the log of the spread."""
    directions: float
    """On the log of the participation ratio."""


def plain(effects: Mapping[str, Effect]) -> dict[str, list[float]]:
    """As a journal holds them: term -> [on the spread, on the directions]."""
    return {term: [effect.spread, effect.directions] for term, effect in effects.items()}


def balance(effects: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """What keeps a level apart, and how strongly, and what pulls it together; strongest first, without what hardly acts."""
    least = ACTS * max(map(abs, effects.values()), default=0.0)
    ordered = sorted(((name, value) for name, value in effects.items() if abs(value) > least), key=lambda one: -abs(one[1]))
    return {name: value for name, value in ordered if value > 0}, {name: -value for name, value in ordered if value < 0}


def held(effects: Mapping[str, Effect]) -> bool:
    """Whether anything keeps a level apart that comes up to what pulls it together."""
    push, pull = balance({name: effect.spread for name, effect in effects.items()})
    return sum(push.values()) >= HOLDS * sum(pull.values())


def measured(stack: Stack, batches: Mapping[str, Batch], step: int, levels: Sequence[str]) -> dict[str, dict[str, Effect]]:
    """level -> `<level>/<term>` -> its effect, for every weighted term of every level that is trained.

    Costs a pass forward, and a backward for each term and two for each of `levels`. The stack stays as it is.
    """
    weights = [parameter for parameter in stack.parameters() if parameter.requires_grad]
    mode = stack.training
    stack.eval()
    try:
        with torch.enable_grad():
            one = Pass(stack, dict(batches), step, whole=True)
            terms = _weighted(one, step)
            wanted = {level: _wanted(one, level) for level in levels}
            found: dict[str, dict[str, Effect]] = {level: {} for level in levels}
            for name, term in terms.items():
                gradients = dict(zip(weights, _gradients(term, weights), strict=True))
                for level, (own, quantities) in wanted.items():
                    along = [gradients.get(weight) for weight in own]
                    found[level][name] = Effect(*(-_product(along, quantity) for quantity in quantities))
    finally:
        stack.train(mode)
    return found


def _wanted(one: Pass, level: str) -> tuple[list[nn.Parameter], list[Gradients]]:
    """The weights of a level, and the gradients of its spread and of its directions in them."""
    own = [parameter for parameter in one.stack.levels[level].parameters() if parameter.requires_grad]
    tokens = one.states(level, one.stack.nodes[level].source).tokens
    return own, [_gradients(quantity, own) for quantity in _quantities(tokens)]


def _weighted(one: Pass, step: int) -> dict[str, Tensor]:
    """Every term of the sum that is trained, as it stands in it."""
    return {
        f"{level}/{name}": one.stack.nodes[level].plan.keys.weight(step) * term
        for level, outcome in one.outcomes().items()
        for name, term in outcome.terms.items()
    }


def _quantities(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (B, T, N, D) -> the log of their spread and of their participation ratio; finite where all are equal."""
    rows = tokens.flatten(0, -2).double()
    centred = rows - rows.mean(0)
    smallest = torch.finfo(tokens.dtype).tiny
    variance = centred.square().sum().clamp(min=smallest)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    return variance.log() / 2, 2 * variance.log() - gram.square().sum().clamp(min=smallest**2).log()


def _gradients(scalar: Tensor, weights: Sequence[Tensor]) -> Gradients:
    if not scalar.requires_grad:
        return [None] * len(weights)
    return torch.autograd.grad(scalar, weights, retain_graph=True, allow_unused=True)


def _product(one: Gradients, other: Gradients) -> float:
    products = [torch.sum(a.double() * b.double()) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return float(torch.stack(products).sum()) if products else 0.0
