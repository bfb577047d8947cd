from __future__ import annotations

import torch

from hjepa.contracts import Spec
from hjepa_energy.l2 import L2


def test_it_is_the_mean_squared_difference_over_the_width_alone() -> None:
    prediction = torch.tensor([[[1.0, -2.0], [0.0, 0.0]]])
    target = torch.tensor([[[0.0, 2.0], [3.0, 0.0]]])
    assert torch.equal(L2(Spec(2))(prediction, target), torch.tensor([[8.5, 4.5]]))


def test_halves_are_squared_in_float32() -> None:
    prediction = torch.full((1, 4), 1e4, dtype=torch.float16)
    assert L2(Spec(4))(prediction, -prediction).item() == 4e8
