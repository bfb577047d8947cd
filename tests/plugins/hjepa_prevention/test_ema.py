from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hjepa.contracts import Here, Spec, States
from hjepa.randomness import Key
from hjepa.schedules import Schedule
from hjepa_prevention.ema import Ema


class Encoder(nn.Module):
    """With a parameter of each sign of zero, a floating buffer, an integer buffer and dropout."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.cat([torch.randn(6, generator=generator), torch.tensor([0.0, -0.0])]))
        self.register_buffer("mean", torch.randn(3, generator=generator))
        self.register_buffer("count", torch.tensor(seed))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x * self.weight)


def bound(momentum: float | Schedule, encoder: nn.Module) -> Ema:
    ema = Ema(Spec(8), momentum=momentum if isinstance(momentum, Schedule) else Schedule.of(momentum))
    ema.bind(encoder)
    return ema


def move(encoder: Encoder, seed: int) -> None:
    encoder.load_state_dict(Encoder(seed).state_dict())


def bits(x: Tensor) -> list[int]:
    return x.detach().view(torch.int32).tolist()


def here_of(encoder: Encoder, x: Tensor) -> Here:
    below = States(x, torch.zeros(x.shape[:2], dtype=torch.int64))
    seen = lambda which: replace(below, tokens=which(here.below.tokens))  # noqa: E731
    here = Here(lambda: below, lambda: seen(encoder), seen, Key.of(0), Key.of(0, 1), 1)
    return here


def test_the_teacher_begins_as_a_copy_and_stays_when_the_encoder_moves() -> None:
    encoder = Encoder()
    ema = bound(0.9, encoder)
    assert torch.equal(ema.teacher.weight, encoder.weight)
    before = bits(ema.teacher.weight)
    move(encoder, 1)
    assert bits(ema.teacher.weight) == before


def test_momentum_one_leaves_the_teacher_and_zero_copies_to_the_last_bit() -> None:
    """P21."""
    for momentum in (1.0, 0.0):
        encoder = Encoder()
        ema = bound(momentum, encoder)
        before = bits(ema.teacher.weight)
        move(encoder, 1)
        with torch.no_grad():
            encoder.weight[-2:] = torch.tensor([-0.0, 5.0])
        ema.after_step(0)
        assert bits(ema.teacher.weight) == (before if momentum == 1 else bits(encoder.weight))


@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9, 0.996])
def test_many_updates_from_a_still_encoder_have_a_closed_form(momentum: float) -> None:
    """P22: after k updates m^k of the way is left."""
    encoder = Encoder()
    start = encoder.weight.detach().clone()
    ema = bound(momentum, encoder)
    move(encoder, 1)
    for step in range(20):
        ema.after_step(step)
    left = momentum**20
    torch.testing.assert_close(ema.teacher.weight, left * start + (1 - left) * encoder.weight.detach(), rtol=1e-5, atol=1e-6)


def test_the_momentum_is_that_of_the_step() -> None:
    encoder = Encoder()
    ema = bound(Schedule(first=0.0, last=1.0, total=3), encoder)
    move(encoder, 1)
    ema.after_step(2)
    assert torch.equal(ema.teacher.weight, Encoder().weight)
    ema.after_step(1)
    torch.testing.assert_close(ema.teacher.weight, (Encoder().weight + encoder.weight) / 2)
    ema.after_step(0)
    assert torch.equal(ema.teacher.weight, encoder.weight)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_buffers_are_copied_whatever_the_momentum(momentum: float) -> None:
    """P24."""
    encoder = Encoder()
    ema = bound(momentum, encoder)
    move(encoder, 7)
    ema.after_step(0)
    assert torch.equal(ema.teacher.mean, encoder.mean)
    assert ema.teacher.count == 7
    assert ema.teacher.count.dtype == torch.int64


def test_the_teacher_is_in_the_checkpoint_and_the_encoder_is_not_there_twice() -> None:
    ema = bound(0.9, Encoder())
    assert sorted(ema.state_dict()) == ["teacher.count", "teacher.mean", "teacher.weight"]
    assert [p.requires_grad for p in ema.parameters()] == [False]


def test_the_teacher_is_always_in_evaluation_mode() -> None:
    encoder = Encoder()
    level = nn.ModuleDict({"encoder": encoder, "ema": bound(0.9, encoder)})
    level.train()
    assert not level["ema"].teacher.training
    assert not level["ema"].teacher.dropout.training
    assert encoder.training


def test_targets_are_the_teachers_and_receive_no_gradient() -> None:
    """P19."""
    encoder, x = Encoder().eval(), torch.randn(2, 3, 1, 8, requires_grad=True)
    ema = bound(0.5, encoder)
    move(encoder, 1)
    targets = ema.targets(here_of(encoder, x))
    assert torch.equal(targets.tokens, x * Encoder().weight)
    assert not targets.tokens.requires_grad


def test_targets_of_an_encoder_that_passes_its_input_on_are_cut_too() -> None:
    x = torch.randn(2, 3, 1, 8, requires_grad=True)
    encoder = nn.Identity()
    ema = bound(0.5, encoder)
    assert not ema.targets(here_of(encoder, x)).tokens.requires_grad


def test_what_is_below_keeps_its_gradient_when_the_teacher_asks_first() -> None:
    weight = torch.ones(8, requires_grad=True)
    time = torch.zeros(2, 3, dtype=torch.int64)
    here = Here(
        lambda: States(weight * torch.randn(2, 3, 1, 8), time),
        lambda: here.below,
        lambda encoder: replace(here.below, tokens=encoder(here.below.tokens)),
        Key.of(0),
        Key.of(0, 1),
        1,
    )
    bound(0.5, Encoder()).targets(here)
    assert here.below.tokens.requires_grad


def test_a_copied_level_moves_its_own_teacher_by_its_own_encoder() -> None:
    encoder = Encoder()
    level = nn.ModuleDict({"encoder": encoder, "ema": bound(0.0, encoder)})
    other = copy.deepcopy(level)
    move(other["encoder"], 3)
    other["ema"].after_step(0)
    assert torch.equal(other["ema"].teacher.weight, Encoder(3).weight)
    assert torch.equal(level["ema"].teacher.weight, Encoder(0).weight)


@pytest.mark.parametrize("schedule", [Schedule.of(1.5), Schedule(first=0.9, last=1.1), Schedule.of(-0.1)])
def test_a_momentum_outside_zero_and_one_is_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Ema(Spec(8), momentum=schedule)
