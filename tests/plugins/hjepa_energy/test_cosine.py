from __future__ import annotations

import pytest
import torch

from hjepa.contracts import Spec
from hjepa_energy.cosine import Cosine


def energy(prediction: list[float], target: list[float]) -> float:
    return float(Cosine(Spec(2))(torch.tensor(prediction), torch.tensor(target)))


def test_it_is_one_minus_the_cosine() -> None:
    assert energy([3, 0], [0.1, 0]) == pytest.approx(0, abs=1e-6)
    assert energy([3, 0], [0, 7]) == pytest.approx(1)
    assert energy([3, 0], [-5, 0]) == pytest.approx(2)
    assert energy([1, 0], [1, 1]) == pytest.approx(1 - 0.5**0.5)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 8, generator=generator)
    torch.testing.assert_close(Cosine(Spec(8))(a, b), 1 - torch.cosine_similarity(a, b, dim=-1))


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-5])
def test_it_and_its_gradient_are_finite_at_zero(length: float) -> None:
    prediction = torch.full((3, 4), length, requires_grad=True)
    target = torch.stack([torch.zeros(4), torch.ones(4), prediction[2].detach()])
    value = Cosine(Spec(4))(prediction, target)
    (gradient,) = torch.autograd.grad(value.sum(), prediction)
    assert value.isfinite().all()
    assert gradient.half().isfinite().all()
    assert value[2] == 0


def test_zero_is_half_way_from_every_direction() -> None:
    assert energy([0, 0], [0, 7]) == pytest.approx(0.5)
