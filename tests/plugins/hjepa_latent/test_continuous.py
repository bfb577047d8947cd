"""A vector that is searched for."""

from __future__ import annotations

from typing import Any

import torch

from hjepa.contracts import Spec
from hjepa_latent.continuous import Continuous


def test_the_penalty_by_hand(spec: Spec) -> None:
    assert Continuous(spec, ridge=3.0).penalty(torch.tensor([[1.0, 2.0]])).tolist() == [7.5]
    assert Continuous(spec).penalty(torch.ones(1, 2)).tolist() == [0]


def test_a_ridge_keeps_z_short(make: Any, spec: Spec) -> None:
    world = make(2)
    lengths = [world.infer(Continuous(spec, ridge=ridge))[0].norm() for ridge in (0.0, 0.1, 1.0, 100.0)]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < 0.1 * lengths[0]


def test_as_wide_as_the_target_and_free_it_reaches_any_target(make: Any, spec: Spec) -> None:
    """Why it must be limited: wrong targets cost no more than true ones."""
    world = make(6)
    world.decoder = torch.nn.Linear(12, 6)
    torch.nn.init.orthogonal_(world.decoder.weight.data[:, 6:])
    free, ridged = Continuous(spec, width=6, steps=60), Continuous(spec, width=6, ridge=1.0, steps=60)
    true = world(world.infer(free)[0])
    world.target = world.target.roll(1, 0)
    assert true.max() < 1e-4 and world(world.infer(free)[0]).max() < 1e-4
    assert world(world.infer(ridged)[0]).min() > 1e-2


def test_it_remembers_while_it_trains(make: Any, spec: Spec) -> None:
    latent = Continuous(spec, memory=10)
    z, _ = make(2).infer(latent)
    assert torch.equal(latent.memory.seen, z.flatten(0, 1)[:10])
