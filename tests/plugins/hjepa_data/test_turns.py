"""The option `turns` of moving_digits: a right angle to a random side at a random frame, and everything stays exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Batch
from hjepa_data.moving_digits import MovingDigits

CPU = torch.device("cpu")


def batch(count: int = 400, **options: object) -> tuple[MovingDigits, Batch]:
    data = MovingDigits(0, turns=True, size=32, digit_size=8, **options)
    return data, data.batch(torch.arange(count), CPU)


def at(values: Tensor, frame: Tensor) -> Tensor:
    """values (B,T,1,2) of the only digit at a frame (B,1) -> (B,2)."""
    return values[:, :, 0].gather(1, frame[..., None].expand(-1, 1, 2))[:, 0]


def test_the_velocity_turns_by_a_right_angle_to_the_side_that_is_told() -> None:
    """Seen with y down, so that clockwise is (x, y) -> (-y, x). A wall that is met in that very frame mirrors an axis."""
    _, found = batch()
    before, after = at(found["velocity"], found["moment"] - 1), at(found["velocity"], found["moment"])
    turned = found["turn"] * torch.stack([-before[:, 1], before[:, 0]], dim=-1)
    same = torch.isclose(turned, after, atol=1e-5).all(dim=-1)
    assert same.float().mean() > 0.8
    torch.testing.assert_close(before.norm(dim=-1), after.norm(dim=-1))
    met = torch.isclose(turned.abs(), after.abs(), atol=1e-5).all(dim=-1)
    assert met.all()


def test_sides_and_moments_are_spread_evenly() -> None:
    _, found = batch(3000, frames=16)
    assert found["turn"].abs().eq(1).all() and found["turn"].float().mean() == pytest.approx(0, abs=0.05)
    counts = found["moment"].flatten().bincount(minlength=16)
    assert not counts[:4].any() and not counts[12:].any() and (counts[4:12] > 300).all()
    beside = found["turn"].float() * found["velocity"][:, 0, :, 0]
    assert beside.mean() == pytest.approx(0, abs=0.1), "the side has nothing to do with the way"


def test_until_the_turn_nothing_differs_and_afterwards_the_path_does() -> None:
    data, found = batch(digits=2)
    straight = MovingDigits(0, size=32, digit_size=8, digits=2).batch(torch.arange(400), CPU)
    same = torch.isclose(found["position"], straight["position"], atol=1e-6).all(dim=-1)
    frames = torch.arange(data.frames)[:, None]
    early = frames <= found["moment"][:, None]
    assert same[early].all() and same[~early].float().mean() < 0.1
    assert found["position"].abs().max() <= 1


def test_between_bounces_positions_follow_velocities() -> None:
    data, found = batch()
    travel = found["position"].diff(dim=1) * (data.size - data.digit_size) / 2
    straight = torch.isclose(travel, found["velocity"][:, :-1], atol=1e-4).all(dim=-1)
    assert straight.float().mean() > 0.8


def test_the_flow_is_the_way_that_was_travelled() -> None:
    data, found = batch(20, flow=True)
    travel = found["position"].diff(dim=1)[:, :, 0] * (data.size - data.digit_size) / 2
    inked = found["frames"][:, :-1, 0] > 0
    flow = found["flow"].permute(0, 1, 3, 4, 2)[inked]
    torch.testing.assert_close(flow, travel[:, :, None, None].expand(*inked.shape, 2)[inked], atol=1e-4, rtol=0)


def test_without_turns_nothing_is_told_and_a_sample_stays_a_pure_function() -> None:
    assert not {"turn", "moment"} & MovingDigits(0).batch(torch.arange(2), CPU).keys()
    data, found = batch(33)
    alone = data.batch(torch.tensor([17]), CPU)
    assert all(torch.equal(found[name][17:18], alone[name]) for name in alone)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_samples_have_their_turn_where_they_can(frames: int) -> None:
    _, found = batch(50, frames=frames)
    assert found["position"].isfinite().all() and (found["moment"] >= 1).all()
