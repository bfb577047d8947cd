"""How a dot wanders: the distributions of its turns and of its steps."""

from __future__ import annotations

import pytest
import torch

from hjepa.randomness import Key
from hjepa_control.wander import lengths, steps, von_mises

SHARES = (torch.arange(100_000) + 0.5) / 100_000


@pytest.mark.parametrize("concentration", [0.0, 0.5, 5.0, 50.0])
def test_turns_have_the_moments_of_von_mises(concentration: float) -> None:
    """E cos = I1 / I0."""
    angles = von_mises(SHARES, concentration).double()
    expected = torch.special.i1e(torch.tensor(concentration)) / torch.special.i0e(torch.tensor(concentration))
    assert float(angles.cos().mean()) == pytest.approx(float(expected), abs=2e-4)
    assert float(angles.sin().mean()) == pytest.approx(0, abs=2e-4)
    assert (angles.diff() >= 0).all() and angles.abs().max() <= torch.pi


def test_steps_are_normal_within_their_bounds() -> None:
    found = lengths(SHARES)
    assert found.min() >= 0.2 and found.max() <= 1.8
    assert float(found.mean()) == pytest.approx(1, abs=1e-3) and float(found.std()) == pytest.approx(0.3518, abs=1e-3)
    middle = ((found > 0.8) & (found < 1.2)).float().mean()
    assert float(middle) == pytest.approx(0.3829 / 0.9545, abs=2e-3)


def test_a_walk_keeps_about_its_direction() -> None:
    heading = torch.linspace(-3, 3, 500)
    walk = steps(Key.of(0).fold(torch.arange(500)), heading, 16, 5.0)
    assert walk.shape == (500, 16, 2)
    direction = torch.atan2(walk[..., 1], walk[..., 0])
    torch.testing.assert_close(direction[:, 0], heading, atol=1e-4, rtol=0)
    assert float(direction.diff(dim=1).cos().mean()) == pytest.approx(0.893, abs=0.01)
