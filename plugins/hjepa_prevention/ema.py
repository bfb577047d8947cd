"""Targets from a teacher: an exponential moving average of the encoder (BYOL arXiv 2006.07733, I-JEPA arXiv 2301.08243)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hjepa.contracts import Here, Spec, States
from hjepa.schedules import Schedule


class Ema(nn.Module):
    """After each step, teacher = momentum * teacher + (1 - momentum) * encoder; buffers of the encoder are copied.

    The teacher begins as a copy of the encoder, is always in evaluation mode and never has a gradient.

    It slows collapse down and does not exclude it: a constant state is still a perfect prediction, complete and dimensional
    collapse both stay minima, and what keeps training away from them is the predictor between the two. Watch the verdict.

    momentum: how much of the teacher stays at a step, in [0, 1]; may be scheduled. I-JEPA's schedule is
        `{from: 0.996, to: 1.0, shape: linear}`.
    """

    def __init__(self, spec: Spec, *, momentum: Schedule = Schedule.of(0.996)) -> None:
        super().__init__()
        self.momentum = share("momentum", momentum)
        self.teacher: nn.Module = nn.Identity()
        self._online: tuple[nn.Module, ...] = ()

    def bind(self, encoder: nn.Module) -> None:
        """Copies the encoder, which must be initialised."""
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()
        # In a tuple the encoder stays what it is, a child of its level: as a child of ours its parameters would count twice.
        self._online = (encoder,)

    def train(self, mode: bool = True) -> Ema:
        super().train(mode)
        self.teacher.eval()
        return self

    def targets(self, here: Here) -> States:
        """The states as the teacher has them."""
        _ = here.below  # made now, with gradient: whoever asks first decides for all
        with torch.no_grad():
            return here.view(self.teacher).detached()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        (online,) = self._online
        blend(list(self.teacher.parameters()), list(online.parameters()), self.momentum(step))
        blend(list(self.teacher.buffers()), list(online.buffers()), 0.0)


def share(name: str, schedule: Schedule) -> Schedule:
    """The schedule, if it stays in [0, 1]. ValueError where it does not."""
    if not (0 <= schedule.first <= 1 and 0 <= schedule.last <= 1):
        raise ValueError(f"{name} must stay in [0, 1]; it goes from {schedule.first} to {schedule.last}")
    return schedule


def blend(kept: list[Tensor], fresh: Iterable[Tensor], momentum: float) -> None:
    """kept = momentum * kept + (1 - momentum) * fresh, in place; 0 and 1 to the last bit, which interpolation misses for -0."""
    if not kept or momentum == 1:
        return
    if momentum == 0:
        torch._foreach_copy_(kept, list(fresh))
    else:
        torch._foreach_lerp_(kept, list(fresh), 1 - momentum)
