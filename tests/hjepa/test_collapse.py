"""Diagnostics and verdicts of a level (P20)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.collapse import Reading, fading, gaussian_rank, measure, spectrum, verdict

seeds = st.integers(0, 2**31)
rows_of = st.integers(40, 300)
widths = st.integers(8, 64)
quick = settings(max_examples=25, deadline=None)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(seed: int, rows: int, width: int) -> Tensor:
    """Columns of length 1, orthogonal to each other and with mean 0."""
    raw = gaussian(seed, rows, width).double()
    return torch.linalg.qr(raw - raw.mean(0)).Q.float()


def alive(seed: int, rows: int = 200, width: int = 64, rank: int = 6) -> Tensor:
    """A few directions that live, in a wide space, off the origin."""
    return gaussian(seed, rows, rank) @ orthonormal(seed + 1, width + 1, rank)[:width].T + 0.5


def reading(embedding: Tensor, energy: float = 0.3, trivial: float = 1.0, shuffled: float | None = None) -> Reading:
    return Reading(**measure(embedding), energy=energy, trivial=trivial, shuffled=shuffled)


def says(embedding: Tensor, initial_std: float = 1.0, **energies: float) -> str:
    return verdict(reading(embedding, **energies), initial_std, settled=True)


# --- the meters ------------------------------------------------------------------------------------------------------


@quick
@given(seeds, rows_of, widths)
def test_rank_of_orthonormal_directions_is_their_number(seed: int, rows: int, width: int) -> None:
    """P20."""
    width = min(width, rows - 2)
    assert measure(orthonormal(seed, rows, width))["rank"] == pytest.approx(width, rel=1e-4)


@quick
@given(seeds, st.integers(2, 50), widths, st.floats(-100, 100))
def test_a_constant_has_rank_one_and_no_spread(seed: int, rows: int, width: int, offset: float) -> None:
    """P20."""
    constant = (gaussian(seed, 1, width) + offset).expand(rows, width)
    found = measure(constant)
    assert found["rank"] == 1
    assert found["std"] <= 1e-6 * found["rms"]
    assert all(math.isfinite(value) for value in found.values())


@quick
@given(seeds, rows_of, widths, st.floats(-3, 3))
def test_invariances(seed: int, rows: int, width: int, exponent: float) -> None:
    """P20: rotation of the space, order of the rows and scale change nothing but the scale."""
    points = gaussian(seed, rows, width) * torch.linspace(0.1, 1, width) + 1
    rotation = torch.linalg.qr(gaussian(seed + 1, width, width).double()).Q.float()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    plain = measure(points)
    for other in (points @ rotation, points[order], points * 10**exponent):
        found = measure(other)
        for name in ("rank", "rank_share", "top_share"):
            assert found[name] == pytest.approx(plain[name], rel=1e-3), name
        assert found["std"] / found["rms"] == pytest.approx(plain["std"] / plain["rms"], rel=1e-4)
        assert spectrum(other) == pytest.approx(spectrum(points), abs=1e-4)
    assert measure(points * 10**exponent)["std"] == pytest.approx(10**exponent * plain["std"], rel=1e-4)
    assert measure(points + 3)["std"] == pytest.approx(plain["std"], rel=1e-4)


def test_effective_rank_of_a_known_spectrum() -> None:
    """Singular values 3 and 1: exp(entropy(3/4, 1/4)) = 1.754765."""
    points = orthonormal(0, 50, 2) * torch.tensor([3.0, 1.0])
    assert measure(points)["rank"] == pytest.approx(1.754765, abs=1e-5)
    assert spectrum(points) == pytest.approx([1, 1 / 3], abs=1e-6)
    assert measure(points)["top_share"] == pytest.approx(0.9, abs=1e-5)


@quick
@given(seeds, rows_of, widths)
def test_a_gaussian_has_all_the_rank_that_its_size_allows(seed: int, rows: int, width: int) -> None:
    assert measure(gaussian(seed, rows, width))["rank_share"] == pytest.approx(1, abs=0.05)
    assert gaussian_rank(rows, width) <= min(rows - 1, width)


def test_correlation_by_hand() -> None:
    one = gaussian(0, 100, 1)
    assert measure(torch.cat([one, -2 * one], 1))["correlation"] == pytest.approx(1, abs=1e-6)
    assert measure(orthonormal(0, 100, 8))["correlation"] == pytest.approx(0, abs=1e-5)
    assert measure(torch.cat([one, torch.ones(100, 1)], 1))["correlation"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (5, 1), (3, 40), (40, 3)])
def test_every_type_and_size_is_finite_and_carries_no_gradient(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    for points in (gaussian(0, *shape), torch.zeros(shape), torch.ones(shape)):
        found = measure(points.to(dtype).requires_grad_())
        assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())
        assert len(spectrum(points.to(dtype))) == min(shape)


def test_rounding_noise_has_no_rank() -> None:
    """What bfloat16 rounding adds to a line far from the origin is not counted as directions."""
    line = torch.linspace(-8, 8, 200)[:, None] * orthonormal(0, 33, 1)[:32].T
    assert measure((line + 30).bfloat16())["rank"] < 1.5 < measure((line + 30).bfloat16().float())["rank"]


# --- gain and ratio --------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e6), st.just(0.0) | st.floats(1e-30, 1e6))
def test_gain_is_finite_and_has_the_right_sign(energy: float, trivial: float) -> None:
    now = replace(reading(alive(0)), energy=energy, trivial=trivial)
    assert math.isfinite(now.gain)
    assert now.gain <= 1
    assert (now.gain > 0) == (energy < trivial)


def test_gain_by_hand() -> None:
    now = reading(alive(0))
    assert replace(now, energy=0.25, trivial=1.0).gain == 0.75
    assert replace(now, energy=3.0, trivial=1.0).gain == -2
    assert replace(now, energy=0.0, trivial=0.0).gain == 0
    assert replace(now, energy=1.0, trivial=0.0).gain < 0


def test_std_ratio_is_the_lesser_of_both() -> None:
    now = replace(reading(alive(0)), std=0.2, rms=0.5)
    assert now.std_ratio(initial_std=0.8) == pytest.approx(0.25)
    assert now.std_ratio(initial_std=0.1) == pytest.approx(0.4)


# --- planted collapses, and living levels ----------------------------------------------------------------------------


@quick
@given(seeds, rows_of, widths, st.sampled_from([0.0, 1e-8, 1e-5, 1e-3]))
def test_a_dot_is_found_wherever_it_lies(seed: int, rows: int, width: int, spread: float) -> None:
    """Shrunk to a point off the origin, even where training began with as little spread."""
    dot = 1 + spread * gaussian(seed, rows, width)
    assert says(dot).startswith("complete collapse")
    assert says(dot, initial_std=spread).startswith("complete collapse")


@quick
@given(seeds, rows_of, widths, st.floats(1e-6, 0.009))
def test_shrinking_into_the_origin_is_found_by_the_start(seed: int, rows: int, width: int, factor: float) -> None:
    """All the rank is still there: rank alone would call this level healthy."""
    start = gaussian(seed, rows, width)
    shrunk = factor * start
    assert measure(shrunk)["rank_share"] > 0.9
    assert says(shrunk, initial_std=measure(start)["std"]).startswith("complete collapse")


@quick
@given(seeds, rows_of, widths, st.sampled_from([0.0, 1e-6, 1e-3, 0.01]), st.floats(-6, 6))
def test_a_line_is_found_at_any_scale(seed: int, rows: int, width: int, noise: float, exponent: float) -> None:
    line = gaussian(seed, rows, 1) @ orthonormal(seed, width + 1, 1)[:width].T
    points = (line + noise / math.sqrt(width) * gaussian(seed + 1, rows, width)) * 10**exponent
    assert says(points, initial_std=measure(points)["std"]).startswith("dimensional collapse")


@quick
@given(seeds, rows_of, widths, st.floats(1.0, 10), st.booleans())
def test_no_better_than_copying_is_found_once_settled(seed: int, rows: int, width: int, energy: float, settled: bool) -> None:
    now = reading(alive(seed, rows, width), energy=energy, trivial=1.0)
    found = verdict(now, initial_std=1.0, settled=settled)
    assert found.startswith("shortcut") if settled else found == "healthy"


@quick
@given(seeds, rows_of, widths, st.integers(2, 8), st.floats(0.02, 100), st.floats(0.01, 1))
def test_living_levels_are_healthy(seed: int, rows: int, width: int, rank: int, initial_std: float, gain: float) -> None:
    """Few directions in a wide space, unequal ones, a large change of scale: none of it is a collapse."""
    points = alive(seed, rows, width, rank)
    factor = initial_std / measure(points)["std"] * 0.1
    assert says(points * factor, initial_std, energy=1 - gain, trivial=1.0) == "healthy"
    assert says(gaussian(seed, rows, width) * torch.logspace(0, -2, width), initial_std=0.5) == "healthy"


def test_an_angle_in_a_wide_space_is_healthy() -> None:
    angle = torch.linspace(0, 2 * math.pi, 400)[:, None]
    circle = torch.cat([angle.cos(), angle.sin()], 1) @ orthonormal(3, 800, 2)[:768].T
    assert says(circle, initial_std=measure(circle)["std"]) == "healthy"


def test_a_level_of_one_dimension_can_only_collapse_completely() -> None:
    assert says(gaussian(0, 100, 1)) == "healthy"
    assert says(gaussian(0, 100, 1) * 1e-3).startswith("complete collapse")


def test_a_single_row_is_no_alarm() -> None:
    assert says(gaussian(0, 1, 8)).startswith("undecided")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_has_diverged(bad: float) -> None:
    points = gaussian(0, 10, 4)
    points[3, 2] = bad
    assert says(points).startswith("diverged")
    assert all(math.isnan(value) for value in spectrum(points))
    assert says(alive(0), energy=bad).startswith("diverged (energy")
    assert says(alive(0), trivial=bad).startswith("diverged (trivial")


def test_the_words_carry_the_numbers() -> None:
    now = Reading(std=0.003, rms=30.0, rank=50.0, rank_share=0.8, top_share=0.1, correlation=0.1, energy=0.1, trivial=1.0)
    assert verdict(now, 1.0, False) == "complete collapse (std at 0.3 % of its start, 0.01 % of its scale)"
    line = replace(now, std=1.0, rms=2.0, rank=1.3, rank_share=1.3 / 64, top_share=0.97)
    assert verdict(line, 1.0, False) == "dimensional collapse (rank 1.3 of 64, 97 % of the variance in one direction)"


@quick
@given(seeds, st.floats(0.02, 0.09), st.floats(0.02, 0.11))
def test_a_level_that_keeps_jittering_is_found_by_both_shares(seed: int, of_start: float, of_scale: float) -> None:
    """Neither share is below 1 %, their product is: what an optimizer leaves of a dead level while its learning rate is high."""
    noise = of_start * gaussian(seed, 4000, 16)
    offset = of_start / of_scale
    assert says(noise + offset).startswith("complete collapse")


@quick
@given(seeds, st.floats(0.02, 50))
def test_another_scale_alone_is_no_collapse(seed: int, factor: float) -> None:
    """A level may shrink a good deal as long as it shrinks as a whole, around the origin."""
    assert says(factor * gaussian(seed, 400, 16)) == "healthy"


@quick
@given(seeds, st.floats(1.0, 50.0))
def test_an_offset_alone_is_no_collapse(seed: int, offset: float) -> None:
    assert says(gaussian(seed, 400, 16) + offset) == "healthy"


def test_a_faint_level_lives_if_its_energy_knows_true_targets_from_wrong_ones() -> None:
    faint = gaussian(0, 200, 16) * 0.1 + 0.05
    assert says(faint, energy=0.6, trivial=1.0, shuffled=0.7).startswith("complete collapse")
    assert says(faint, energy=0.6, trivial=1.0, shuffled=1.2) == "healthy"
    assert says(faint, energy=0.6, trivial=1.0) == "healthy"
    assert says(faint, initial_std=0.3, energy=0.6, trivial=1.0, shuffled=0.7) == "healthy"
    unsettled = reading(faint, energy=0.6, trivial=1.0, shuffled=0.7)
    assert verdict(unsettled, 1.0, settled=False) == "healthy"


def test_a_fading_level_lives_if_anything_keeps_it_apart() -> None:
    """Whatever its energy knows still: and one that only changes its scale is not fading."""
    faint = reading(gaussian(0, 200, 16) * 0.12 + 0.4, energy=0.6, trivial=1.0, shuffled=2.0)
    assert fading(faint, 1.0, settled=True)
    assert not fading(faint, 1.0, settled=False) and not fading(faint, 0.5, settled=True)
    assert verdict(faint, 1.0, settled=True, held=True) == "healthy"
    assert verdict(faint, 1.0, settled=True, held=False).startswith("complete collapse (std at 12")
    scaled = reading(gaussian(0, 200, 16) * 0.12, energy=0.6, trivial=1.0, shuffled=2.0)
    assert verdict(scaled, 1.0, settled=True, held=False) == "healthy"


def test_a_level_far_off_the_origin_that_lost_little_is_alive() -> None:
    """As maps are that were pooled: their spread is a small share of their scale."""
    pooled, vague = gaussian(0, 200, 16) * 0.045 + 0.6, {"energy": 0.6, "trivial": 1.0, "shuffled": 0.9}
    start = measure(pooled)["std"]
    assert says(pooled, start * 2, **vague) == "healthy"
    assert not fading(reading(pooled), start * 2, settled=True)
    assert says(pooled, start * 6, **vague).startswith("complete collapse")
    assert says(pooled * 0.1 + 0.6, start, **vague).startswith("complete collapse")
    assert says(pooled + 6, start * 0.9, **vague).startswith("complete collapse"), "less than 1 % of its scale"


def test_an_energy_that_takes_any_target_is_told_from_one_that_learned_nothing_yet() -> None:
    alive = gaussian(0, 200, 16)
    assert says(alive, energy=0.01, trivial=1.0, shuffled=0.011).startswith("energy collapse")
    assert says(alive, energy=0.9, trivial=1.0, shuffled=0.91) == "healthy"
    assert says(alive, energy=0.01, trivial=1.0, shuffled=0.5) == "healthy"
    assert reading(alive, energy=0.2, trivial=1.0, shuffled=0.4).gap == pytest.approx(0.2)
    assert reading(alive, energy=0.2, trivial=0.1, shuffled=0.4).gap == pytest.approx(0.5)
    assert reading(alive).gap is None
