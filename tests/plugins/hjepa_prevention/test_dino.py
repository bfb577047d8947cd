from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa.contracts import Here, Pair, Spec
from hjepa.randomness import Key
from hjepa.schedules import Schedule
from hjepa_prevention.dino import Dino


def here(step: int = 0) -> Here:
    return Here(lambda: None, lambda: None, lambda encoder: None, Key.of(0), Key.of(0, step), step)


def made(width: int = 4, **options: object) -> Dino:
    torch.manual_seed(0)
    return Dino(Spec(width), **({"prototypes": 6} | options))


def entropy(dino: Dino, prediction: Tensor, target: Tensor, step: int = 0) -> Tensor:
    return dino.terms(Pair(prediction, target, prediction), here(step))["prototypes"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosines(dino: Dino, x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) @ F.normalize(dino.head.prototypes.weight, dim=-1).T


def test_it_is_the_cross_entropy_of_centred_and_sharpened_shares() -> None:
    dino, a, b = made(weight=3.0), drawn(5, 2, 1, 4), drawn(5, 2, 1, 4, seed=1)
    dino.centre.copy_(0.1 * drawn(6, seed=2))
    wanted = ((cosines(dino, b) - dino.centre) / 0.04).softmax(-1)
    expected = -(wanted * (cosines(dino, a) / 0.1).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(entropy(dino, a, b), 3 * expected)


def test_the_temperature_of_targets_is_that_of_the_step() -> None:
    a, b = drawn(5, 4), drawn(5, 4, seed=1)
    dino = made(teacher_temperature=Schedule(first=0.04, last=0.08, total=5))
    for step, temperature in ((0, 0.04), (2, 0.06), (4, 0.08)):
        still = made(teacher_temperature=Schedule.of(temperature))
        torch.testing.assert_close(entropy(dino, a, b, step), entropy(still, a, b))


def test_what_all_targets_have_in_common_is_centred_away() -> None:
    """Collapsed targets, once centred, choose no prototype: the cross-entropy to equal cosines is the logarithm of their number."""
    dino, b = made(centring=0.0), drawn(1, 4).expand(7, 4)
    entropy(dino, b, b)
    dino.after_step(0)
    torch.testing.assert_close(dino.centre, cosines(dino, b)[0].detach())
    assert entropy(dino, torch.zeros(7, 4), b).item() == pytest.approx(math.log(6))


def test_the_centre_is_the_moving_mean_of_targets() -> None:
    dino = made(centring=0.8, momentum=Schedule.of(1.0))
    centre = torch.zeros(6)
    for step in range(4):
        target = drawn(5, 3, 2, 4, seed=step)
        entropy(dino, target, target)
        assert torch.equal(dino.centre, dino.centre.clone())
        before = dino.centre.clone()
        entropy(dino, target, target)
        assert torch.equal(dino.centre, before)
        dino.after_step(step)
        centre = 0.8 * centre + 0.2 * cosines(dino, target).detach().flatten(0, -2).mean(0)
    torch.testing.assert_close(dino.centre, centre)


def test_nothing_moves_in_evaluation_mode() -> None:
    dino, z = made(), drawn(5, 4)
    entropy(dino, z, z)
    dino.eval()
    entropy(dino, z + 3, z + 3)
    dino.after_step(0)
    torch.testing.assert_close(dino.centre, 0.1 * cosines(dino, z).detach().mean(0))


@pytest.mark.parametrize("momentum", [0.0, 0.7, 1.0])
def test_the_teacher_of_the_head_follows_the_head(momentum: float) -> None:
    dino = made(momentum=Schedule.of(momentum), projector=(8, 5))
    begun = {name: value.clone() for name, value in dino.teacher.state_dict().items()}
    assert {name: value.shape for name, value in begun.items()} == {n: v.shape for n, v in dino.head.state_dict().items()}
    with torch.no_grad():
        for parameter in dino.head.parameters():
            parameter += 1
    dino.after_step(0)
    for name, value in dino.teacher.state_dict().items():
        torch.testing.assert_close(value, momentum * begun[name] + (1 - momentum) * dino.head.state_dict()[name])


def test_targets_and_the_teacher_of_the_head_receive_no_gradient() -> None:
    """P19."""
    dino, a, b = made(projector=(8, 5)), drawn(5, 4).requires_grad_(), drawn(5, 4, seed=1).requires_grad_()
    entropy(dino, a, b).backward()
    assert b.grad is None
    assert a.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in dino.teacher.parameters())
    assert all(p.grad is not None for p in dino.head.parameters())


def test_the_centre_follows_all_parts_of_a_batch() -> None:
    target, whole, parted = drawn(6, 4), made(), made()
    entropy(whole, target, target)
    whole.after_step(0)
    for part in target.split(4):
        entropy(parted, part, part)
    parted.after_step(0)
    torch.testing.assert_close(parted.centre, whole.centre)
    assert whole.centre.abs().sum() > 0


def test_centre_and_heads_are_in_the_checkpoint() -> None:
    dino, other, z = made(), Dino(Spec(4), prototypes=6), drawn(5, 4)
    for step in range(2):
        entropy(dino, z, z)
        dino.after_step(step)
    other.load_state_dict(dino.state_dict())
    assert "centre" in dino.state_dict()
    assert torch.equal(entropy(other, z, z.flip(0)), entropy(dino, z, z.flip(0)))


def test_a_temperature_of_zero_and_a_momentum_beyond_one_are_refused() -> None:
    with pytest.raises(ValueError, match="teacher_temperature must stay above 0"):
        made(teacher_temperature=Schedule(first=0.04, last=0.0))
    with pytest.raises(ValueError, match=r"momentum must stay in \[0, 1\]"):
        made(momentum=Schedule.of(1.1))
