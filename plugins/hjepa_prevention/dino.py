"""DINO (arXiv 2104.14294, equations 1 to 4): predictions choose the same prototypes as targets, which are centred and sharpened."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Fraction, Here, NonNegative, Pair, Positive, Spec
from hjepa.distributed import sum_ranks
from hjepa.nn.projector import projected
from hjepa.nn.projector import projector as make_projector
from hjepa.nn.statistics import at_least_float32, row_mean, unit, without_autocast
from hjepa.schedules import Schedule
from hjepa_prevention.ema import blend, share


class Dino(nn.Module):
    """The cross-entropy between the shares of prototypes of a target, softmax((t - centre) / teacher_temperature), and those of
    its prediction, softmax(s / temperature); s and t are cosines to prototypes.

    A whole objective, for the list that `ema` (DINO) or `stop_gradient` is in: those choose the encoder of the targets, and no
    gradient reaches targets here in any case. The head has a teacher of its own, as in DINO: a moving average, which reads the
    targets; with `momentum: 0` it is the head itself. The centre is the moving mean of t over all targets of all ranks; it moves
    after each step.
    Centring alone prevents that one prototype takes all and ends where all shares are equal; sharpening alone the reverse. Both
    together balance, and exclude collapse no more than a moving teacher does: a constant state stays a fixed point, where the
    term is the logarithm of the number of prototypes. Against dimensional collapse they ask for as many directions as it takes to
    tell the prototypes in use apart, and no more.

    weight: of the term.
    prototypes: how many there are; the paper has 65536.
    temperature: of the predictions.
    teacher_temperature: of the targets, below `temperature`: the lower, the sharper. May be scheduled: the paper's warm-up is
        `{from: 0.04, to: 0.07}`.
    centring: how much of the centre stays at a step; 1 leaves the centre at 0.
    momentum: how much of the teacher's head stays at a step; may be scheduled.
    projector: widths of the perceptron of the head before the prototypes; the paper's is `[2048, 2048, 256]`.
    """

    centre: Tensor

    def __init__(
        self,
        spec: Spec,
        *,
        weight: NonNegative = 1.0,
        prototypes: Count = 256,
        temperature: Positive = 0.1,
        teacher_temperature: Schedule = Schedule.of(0.04),
        centring: Fraction = 0.9,
        momentum: Schedule = Schedule.of(0.996),
        projector: tuple[Count, ...] = (),
    ) -> None:
        super().__init__()
        if min(teacher_temperature.first, teacher_temperature.last) <= 0:
            raise ValueError("teacher_temperature must stay above 0")
        self.weight, self.temperature, self.centring = weight, temperature, centring
        self.teacher_temperature, self.momentum = teacher_temperature, share("momentum", momentum)
        self.head = Head(spec.width, projector, prototypes)
        self.teacher = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(prototypes))
        self._told: list[tuple[Tensor, Tensor]] = []

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`prototypes`: the mean cross-entropy, weighted."""
        with torch.no_grad():
            told = self.teacher(pair.target)
            wanted = ((told - self.centre) / self.teacher_temperature(here.step)).softmax(dim=-1)
        if self.training:
            told = told.flatten(0, -2)
            self._told.append((told.sum(0), told.new_full((), len(told))))
        guess = (self.head(pair.prediction) / self.temperature).log_softmax(dim=-1)
        return {"prototypes": self.weight * row_mean(-(wanted * guess).sum(-1))}

    def after_step(self, step: int) -> None:
        """The centre follows the targets, the teacher's head the head."""
        if self._told:
            total, count = (sum_ranks(torch.stack(parts).sum(0)) for parts in zip(*self._told, strict=True))
            self.centre.lerp_((total / count).to(self.centre.dtype), 1 - self.centring)
            self._told = []
        blend(list(self.teacher.parameters()), list(self.head.parameters()), self.momentum(step))


class Head(nn.Module):
    """(..., width) -> (..., prototypes): the cosine of what the projector makes of it to each prototype."""

    def __init__(self, width: int, widths: tuple[int, ...], prototypes: int) -> None:
        super().__init__()
        self.projector = make_projector(width, widths)
        self.prototypes = nn.Linear(projected(width, widths), prototypes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(self.projector(x))
        with without_autocast(x):
            return unit(x) @ unit(self.prototypes.weight).mT
