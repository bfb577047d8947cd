from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Here, Pair, Spec
from hjepa.randomness import Key
from hjepa_energy.l1 import L1
from hjepa_prevention.hinge import Hinge


def here(step: int = 1) -> Here:
    return Here(lambda: None, lambda: None, lambda encoder: None, Key.of(0), Key.of(0, step), step)


def missing(prediction: Tensor, target: Tensor, step: int = 1, **options: object) -> Tensor:
    made = Hinge(Spec(prediction.shape[-1]), **options)
    return made.terms(Pair(prediction, target, prediction), here(step))["margin"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_two_pairs_by_hand() -> None:
    """The only other of each is the other: energies 0 and 1 of the first, 1/4 and 9/4 of the second."""
    prediction, target = torch.tensor([[0.0], [1.5]]), torch.tensor([[0.0], [1.0]])
    assert missing(prediction, target, margin=0.5).item() == 0
    assert missing(prediction, target, margin=1.5).item() == pytest.approx((0.5 + 0) / 2)
    assert missing(prediction, target, margin=3.0, weight=2.0).item() == pytest.approx(2 * (2 + 1) / 2)


def test_equal_energies_cost_the_margin() -> None:
    z = torch.full((6, 3), 2.0)
    assert missing(z, z, margin=0.7).item() == pytest.approx(0.7)
    assert missing(z[:1], z[:1], margin=0.7).item() == pytest.approx(0.7)


def test_the_other_is_another_sample_at_the_same_step_and_token() -> None:
    """A target that names its step and token: the true one is as far as any other of that step and token, whatever the step."""
    place = torch.arange(6.0).view(1, 3, 2, 1).expand(5, 3, 2, 1)
    for step in range(8):
        assert missing(0 * place, place, step).item() == pytest.approx(1)
    samples = 10 * torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 2, 1)
    assert all(missing(samples, samples, step).item() == 0 for step in range(20))


def test_the_shuffle_is_the_steps_own() -> None:
    a, b = drawn(50, 3), drawn(50, 3, seed=1)
    assert torch.equal(missing(a, b, 1), missing(a, b, 1))
    assert len({missing(a, b, step).item() for step in range(9)}) > 4


def test_it_falls_with_the_energy_of_the_other_and_grows_with_that_of_the_true_one() -> None:
    def of(energies: list[list[float]]) -> float:
        """Row i of `energies` is what the prediction i costs with each of two targets."""
        product = lambda spec: lambda prediction, target: (prediction * target).sum(-1)  # noqa: E731
        return missing(torch.eye(2), torch.tensor(energies).T, energy=product).item()

    base = of([[1.0, 1.5], [1.0, 1.5]])
    assert base == pytest.approx(((1 - 0.5) + (1 + 0.5)) / 2)
    assert of([[1.2, 1.5], [1.0, 1.5]]) > base > of([[0.8, 1.5], [1.0, 1.5]])
    assert of([[1.0, 1.4], [1.0, 1.5]]) > base > of([[1.0, 1.6], [1.0, 1.5]])
    assert of([[1.0, 2.0], [3.0, 1.5]]) == of([[1.0, 9.0], [9.0, 1.5]]) == 0


def test_an_energy_of_ones_own() -> None:
    a, b = drawn(2, 3), drawn(2, 3, seed=1)
    energy = L1(Spec(3))
    expected = (2 + energy(a, b) - energy(a, b.flip(0))).relu().mean()
    torch.testing.assert_close(missing(a, b, margin=2.0, energy=lambda spec: energy), expected)
    seen = []
    Hinge(Spec(3, grid=(2,)), projector=(8, 5), energy=lambda spec: seen.append(spec) or energy)
    assert (seen[0].width, seen[0].grid) == (5, (2,))


def test_it_tells_apart_what_is_nearly_collapsed_and_then_rests() -> None:
    a, b = ((1e-3 * drawn(16, 3, seed=seed)).requires_grad_() for seed in (0, 1))
    optimizer = torch.optim.Adam([a, b], lr=0.02)
    for step in range(200):
        optimizer.zero_grad()
        missing(a, b, step).backward()
        optimizer.step()
    values = [missing(a, b, step) for step in range(20)]
    assert sum(values) / 20 < 0.15
    assert any(value == 0 for value in values)
