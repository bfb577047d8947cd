"""Several models in the same tasks: intervals for other models and other tasks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.planning import crossed, episodes, paired


def drawn(models: int, tasks: int, of_models: float, of_tasks: float, draws: int = 1, ease: float = 1.0) -> Tensor:
    """(draws, models, tasks) bool: models differ so much, and tasks, in the logarithm of the odds."""
    word = torch.Generator().manual_seed(3)
    odds = (
        ease
        + of_models * torch.randn(draws, models, 1, generator=word)
        + of_tasks * torch.randn(draws, 1, tasks, generator=word)
    )
    return torch.rand(draws, models, tasks, generator=word) < odds.sigmoid()


@pytest.mark.parametrize(("of_models", "of_tasks"), [(0.0, 0.0), (0.0, 1.5), (0.4, 1.5), (0.8, 0.0)])
def test_of_a_hundred_intervals_about_ninety_five_hold_the_truth(of_models: float, of_tasks: float) -> None:
    truth = drawn(1, 1, of_models, of_tasks, draws=400_000).float().mean()
    found = [crossed.share(hit) for hit in drawn(3, 50, of_models, of_tasks, draws=300)]
    assert sum(one["low"] <= truth <= one["high"] for one in found) >= 0.91 * len(found)


def test_as_if_all_were_independent_would_hold_it_too_seldom() -> None:
    truth = drawn(1, 1, 0.4, 1.5, draws=400_000).float().mean()
    found = [episodes.share(hit) for hit in drawn(3, 50, 0.4, 1.5, draws=300)]
    assert sum(one["low"] <= truth <= one["high"] for one in found) < 0.88 * len(found)


def test_of_a_hundred_differences_too() -> None:
    truth = drawn(1, 1, 0.4, 1.5, draws=400_000, ease=0.2).float().mean() - drawn(1, 1, 0.4, 1.5, draws=400_000).float().mean()
    pairs = zip(drawn(3, 50, 0.4, 1.5, draws=300, ease=0.2), drawn(3, 50, 0.4, 1.5, draws=300), strict=True)
    found = [crossed.difference(one, other) for one, other in pairs]
    assert sum(one["against_low"] <= truth <= one["against_high"] for one in found) >= 0.91 * len(found)


@given(st.integers(1, 19), st.integers(2, 4))
def test_models_that_do_all_the_same_say_no_more_than_one(hits: int, models: int) -> None:
    hit = torch.arange(20) < hits
    one, many = episodes.share(hit), crossed.share(hit.expand(models, -1))
    assert many["success"] == pytest.approx(one["success"])
    assert many["low"] <= one["low"] + 1e-6 and one["high"] <= many["high"] + 1e-6
    assert many["high"] - many["low"] < 1.2 * (one["high"] - one["low"])


@pytest.mark.parametrize("all_of_them", [True, False])
def test_what_is_always_or_never_reached_has_the_interval_of_one_model(all_of_them: bool) -> None:
    hit = torch.full((3, 30), all_of_them)
    assert crossed.share(hit) == episodes.share(hit[0])


@given(st.integers(0, 2**30), st.integers(1, 4), st.integers(1, 12))
def test_an_interval_holds_its_mean_and_stays_where_shares_are(seed: int, models: int, tasks: int) -> None:
    one, other = torch.rand(2, models, tasks, generator=torch.Generator().manual_seed(seed)) < 0.6
    share, more = crossed.share(one), crossed.difference(one, other)
    assert -1e-9 <= share["low"] <= share["success"] <= share["high"] <= 1 + 1e-9
    assert -1 <= more["against_low"] <= more["against"] <= more["against_high"] <= 1
    alone = paired.difference(one, other)
    assert more["against_low"] <= alone["against_low"] and alone["against_high"] <= more["against_high"]
    assert more["against"] == alone["against"]


def test_a_model_that_always_fails_makes_it_wide() -> None:
    hit = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) < 0.9
    sure = crossed.share(hit)
    hit[2] = False
    unsure = crossed.share(hit)
    assert unsure["high"] - unsure["low"] > 0.6 > 5 * (sure["high"] - sure["low"]) > 0
