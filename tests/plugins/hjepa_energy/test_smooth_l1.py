from __future__ import annotations

import pytest
import torch

from hjepa.contracts import Spec
from hjepa_energy.smooth_l1 import SmoothL1


def test_it_is_squared_near_zero_and_absolute_far_from_it() -> None:
    prediction = torch.tensor([[0.5, 3.0]])
    energy = SmoothL1(Spec(2), beta=2.0)(prediction, torch.zeros(1, 2))
    assert energy.item() == pytest.approx((0.5**2 / 4 + (3 - 1)) / 2)


def test_the_two_parts_meet_with_one_slope() -> None:
    x = torch.tensor([[1.999], [2.001]], requires_grad=True)
    energy = SmoothL1(Spec(1), beta=2.0)(x, torch.zeros(2, 1))
    (slope,) = torch.autograd.grad(energy.sum(), x)
    assert (energy[1] - energy[0]).item() == pytest.approx(0.002, rel=1e-2)
    assert slope.squeeze().tolist() == pytest.approx([0.9995, 1.0])
