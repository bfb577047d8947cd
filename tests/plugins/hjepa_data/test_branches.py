"""Two ways from each point of a ring, each in half of the cases."""

from __future__ import annotations

import math

import pytest
import torch

from hjepa.errors import Mistake
from hjepa_data.branches import Branches

CPU = torch.device("cpu")


def test_both_steps_lie_on_the_ring_and_differ_by_the_angle() -> None:
    batch = Branches(0, angle=60).batch(torch.arange(500), CPU)
    start, end = batch["points"].unbind(dim=1)
    assert batch["points"].shape == (500, 2, 2) and batch["branch"].shape == (500,)
    torch.testing.assert_close(batch["points"].norm(dim=-1), torch.ones(500, 2))
    turned = torch.atan2(start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0], (start * end).sum(dim=-1))
    torch.testing.assert_close(turned, math.radians(60) * (2.0 * batch["branch"] - 1), atol=1e-5, rtol=0)


def test_nothing_in_the_first_step_says_which_way() -> None:
    batch = Branches(0).batch(torch.arange(4000), CPU)
    assert batch["branch"].float().mean() == pytest.approx(0.5, abs=0.03)
    assert batch["points"][:, 0].mean(dim=0).abs().max() < 0.04
    left = batch["points"][batch["branch"] == 1, 0]
    assert left.mean(dim=0).abs().max() < 0.05


def test_the_best_guess_without_the_branch_is_the_mean_of_both_ways() -> None:
    start, end = Branches(0, angle=50).batch(torch.arange(4000), CPU)["points"].unbind(dim=1)
    errors = {share: (end - share * start).square().sum(dim=-1).mean() for share in (0.4, math.cos(math.radians(50)), 0.9)}
    assert min(errors, key=lambda share: errors[share]) == math.cos(math.radians(50))
    assert errors[math.cos(math.radians(50))] == pytest.approx(math.sin(math.radians(50)) ** 2, abs=1e-5)


def test_noise_is_on_the_second_step_alone() -> None:
    quiet, noisy = (Branches(0, noise=noise).batch(torch.arange(2000), CPU)["points"] for noise in (0.0, 0.1))
    assert torch.equal(quiet[:, 0], noisy[:, 0])
    assert (noisy - quiet)[:, 1].std() == pytest.approx(0.1, abs=0.01)


def test_a_sample_is_a_pure_function_of_seed_split_and_id() -> None:
    data = Branches(3, noise=0.1)
    whole, alone = data.batch(torch.arange(33), CPU), data.batch(torch.tensor([17]), CPU)
    assert all(torch.equal(whole[name][17:18], alone[name]) for name in whole)
    others = (Branches(4, noise=0.1), data.split("test"), data.split("valid"))
    assert not any(torch.equal(whole["points"], other.batch(torch.arange(33), CPU)["points"]) for other in others)


def test_lengths_and_splits() -> None:
    data = Branches(0, samples=7, held_out=3)
    assert [len(data.split(name)) for name in ("train", "valid", "test")] == [7, 3, 3]
    with pytest.raises(Mistake, match="did you mean 'valid'"):
        data.split("validation")
