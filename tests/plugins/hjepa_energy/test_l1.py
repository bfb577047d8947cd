from __future__ import annotations

import torch

from hjepa.contracts import Spec
from hjepa_energy.l1 import L1


def test_it_is_the_mean_absolute_difference_over_the_width_alone() -> None:
    prediction = torch.tensor([[[1.0, -2.0], [0.0, 0.0]]])
    target = torch.tensor([[[0.0, 2.0], [3.0, 0.0]]])
    assert torch.equal(L1(Spec(2))(prediction, target), torch.tensor([[2.5, 1.5]]))
