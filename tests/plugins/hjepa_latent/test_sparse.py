"""A vector with few entries that are not 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hjepa.contracts import Spec
from hjepa_latent.sparse import Sparse


def test_the_penalty_by_hand(spec: Spec) -> None:
    assert Sparse(spec, weight=0.5).penalty(torch.tensor([[1.0, -2.0, 0.0]])).tolist() == [1.5]


def test_a_larger_weight_leaves_fewer_entries(make: Any, spec: Spec) -> None:
    world = make(8)
    active = []
    for weight in (1e-4, 0.05, 10.0):
        latent = Sparse(spec, weight=weight)
        active.append(float(latent.logs(world.infer(latent)[0])["active"]))
    assert active[0] > active[1] > active[2] == 0


def test_the_active_share_by_hand(spec: Spec) -> None:
    z = torch.tensor([[[0.0, 1.0], [-1e-9, 0.0]]])
    assert Sparse(spec).logs(z)["active"] == pytest.approx(0.5)


def test_it_is_a_fixed_point_of_its_own_step(make: Any, spec: Spec) -> None:
    """Of an energy that is convex in z, in any number of steps more."""
    world = make(3)
    world.decoder = torch.nn.Linear(9, 6)
    z = world.infer(Sparse(spec, width=3, weight=0.05, steps=150))[0].requires_grad_()
    (slope,) = torch.autograd.grad(world(z).sum(), z)
    again = Sparse(spec, width=3, weight=0.05)._thresholded(z - 0.1 * slope, torch.tensor(0.1))
    torch.testing.assert_close(again, z, atol=1e-3, rtol=1e-3)
