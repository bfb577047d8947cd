"""Colours of flow: direction is hue, speed is saturation."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa_motion.colours import coloured, wheel

ANGLES = st.floats(0, math.tau)


def colour(angle: float, length: float, largest: float = 1.0) -> Tensor:
    """(3,)."""
    flow = length * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    return coloured(flow[:, None, None], largest)[0, 0]


def saturation(one: Tensor) -> float:
    """As of the cone of hue, saturation and value."""
    return float((one.amax() - one.amin()) / one.amax())


@given(ANGLES, st.floats(0.02, 1), st.floats(0.1, 50))
def test_speed_is_saturation(angle: float, share: float, largest: float) -> None:
    found = colour(angle, share * largest, largest)
    assert abs(saturation(found) - share) < 1e-4 and abs(float(found.amax()) - 1) < 1e-5


@given(ANGLES, st.floats(0.05, 1))
def test_direction_is_hue_whatever_the_speed(angle: float, share: float) -> None:
    pure, pale = colour(angle, 1), colour(angle, share)
    torch.testing.assert_close(1 - (1 - pale) / share, pure, atol=1e-4, rtol=0)


@given(ANGLES, ANGLES)
def test_directions_that_differ_differ_in_colour_and_neighbours_little(one: float, other: float) -> None:
    apart = abs((one - other + math.pi) % math.tau - math.pi)
    difference = float((colour(one, 1) - colour(other, 1)).abs().max())
    # The steepest step is a quarter of a colour in a 55th of the circle, the flattest a fifteenth.
    assert difference <= apart / math.tau * 55 / 4 + 1e-4
    assert difference >= min(0.9, apart / math.tau * 55 / 15 / 2) - 1e-4


def test_the_axes_have_the_colours_of_middlebury() -> None:
    assert len(wheel()) == 55 and len({tuple(one.tolist()) for one in wheel()}) == 55
    assert colour(0, 1).tolist() == [1, 0, 0]  # to the right: red
    torch.testing.assert_close(colour(math.tau * 15 / 55, 1), torch.tensor([1.0, 1.0, 0.0]))
    down, left, up = (colour(turn * math.tau, 1) for turn in (0.25, 0.5, 0.75))
    assert down[0] == 1 and down[1] > 0.85 and left[2] == 1 and left[1] > 0.7 and up[2] > 0.9 and 0 < up[0] < 1


def test_standing_still_is_white_and_what_is_too_fast_is_darker() -> None:
    assert coloured(torch.zeros(2, 1, 1), 5.0).flatten().tolist() == [1, 1, 1]
    torch.testing.assert_close(colour(1, 3), 0.75 * colour(1, 1))
    assert torch.isfinite(coloured(torch.zeros(2, 2, 1, 1), torch.ones(2, 1, 1))).all()
