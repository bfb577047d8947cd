"""A row for each measure of collapse: where it is zero, what it says of a collapsed level, what it does not see, how it scales."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.collapse import measure
from hjepa.contracts import Here, Pair, Spec, States
from hjepa.randomness import Key
from hjepa_prevention.barlow import Barlow
from hjepa_prevention.infonce import Infonce
from hjepa_prevention.inverse_dynamics import InverseDynamics
from hjepa_prevention.sigreg import Sigreg
from hjepa_prevention.temporal_similarity import TemporalSimilarity
from hjepa_prevention.vicreg import Vicreg

SEEDS = st.integers(0, 2**31)
SCALES = st.floats(0.05, 20)
ROWS, WIDTH = 60, 5
POINT = torch.full((ROWS, WIDTH), 1.5, dtype=torch.float64)
"""A level that has collapsed."""


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(seed: int) -> Tensor:
    """Correlated, of different spread, away from 0."""
    return drawn(ROWS, WIDTH, seed=seed) @ drawn(WIDTH, WIDTH, seed=seed + 1) + 2


def white(seed: int) -> Tensor:
    """Columns of deviation 1 that do not correlate."""
    z = drawn(ROWS, WIDTH, seed=seed)
    return torch.linalg.qr(z - z.mean(0)).Q * (ROWS - 1) ** 0.5


def order(seed: int) -> Tensor:
    return torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))


def rotation(seed: int) -> Tensor:
    return torch.linalg.qr(drawn(WIDTH, WIDTH, seed=seed)).Q


def terms(prevention: object, a: Tensor, b: Tensor | None = None, step: int = 1) -> dict[str, Tensor]:
    states = States(a[:, None, None], torch.zeros(len(a), 1, dtype=torch.int64))
    here = Here(lambda: states, lambda: states, lambda encoder: None, Key.of(0), Key.of(0, step), step)
    return prevention.terms(Pair(a, a if b is None else b, a), here)


def hinge(z: Tensor) -> Tensor:
    return terms(Vicreg(Spec(WIDTH), std=1.0, cov=0.0), z)["std"]


def covariance(z: Tensor) -> Tensor:
    return terms(Vicreg(Spec(WIDTH), std=0.0, cov=1.0), z)["cov"]


def invariance(a: Tensor, b: Tensor) -> Tensor:
    return terms(Vicreg(Spec(WIDTH), inv=1.0, std=0.0, cov=0.0), a, b)["inv"]


def barlow(a: Tensor, b: Tensor) -> Tensor:
    return sum(terms(Barlow(Spec(WIDTH)), a, b).values())


def ntxent(a: Tensor, b: Tensor) -> Tensor:
    return terms(Infonce(Spec(WIDTH), negatives="both", symmetric=True, temperature=0.5), a, b)["contrast"]


def sigreg(z: Tensor, slices: int = 64, step: int = 1) -> Tensor:
    return terms(Sigreg(Spec(z.shape[1]), weight=1.0, over="all", slices=slices), z, step=step)["normal"]


@given(seed=SEEDS, scale=st.floats(1, 20))
def test_the_hinge_on_the_deviation(seed: int, scale: float) -> None:
    """Zero where all deviations reach 1; falls along a line with the scale, until then."""
    z = rows(seed)
    assert hinge(1.01 * scale * white(seed)) == 0
    assert hinge(POINT).item() == pytest.approx(1 - 0.01)
    torch.testing.assert_close(hinge(z[order(seed)] + 7), hinge(z), atol=1e-9, rtol=1e-7)
    small = 0.9 * white(seed) / scale
    assert hinge(small).item() == pytest.approx(1 - math.sqrt((0.9 / scale) ** 2 + 1e-4), abs=1e-6)
    assert hinge(scale * z) <= hinge(z)


@given(seed=SEEDS, scale=SCALES)
def test_the_covariance(seed: int, scale: float) -> None:
    """Zero where dimensions do not correlate, and where everything has collapsed: alone it is minimised by collapse."""
    z = rows(seed)
    assert covariance(scale * white(seed)).item() == pytest.approx(0, abs=1e-9 * scale**4)
    assert covariance(POINT) == 0
    signs = drawn(WIDTH, seed=seed).sign()
    torch.testing.assert_close(covariance(z[order(seed)] * signs + 7), covariance(z), atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(covariance(scale * z), scale**4 * covariance(z), atol=1e-9, rtol=1e-7)
    gradient = torch.autograd.functional.jacobian(covariance, z)
    assert covariance(z - 1e-6 * gradient) <= covariance(z)
    assert (gradient * (z - z.mean(0))).sum() >= 0  # downhill is together


@given(seed=SEEDS, scale=SCALES)
def test_the_distance_of_two_views(seed: int, scale: float) -> None:
    """Zero where they are equal, collapsed or not."""
    a, b = rows(seed), rows(seed + 5)
    assert invariance(a, a) == invariance(POINT, POINT) == 0
    turn = rotation(seed)
    torch.testing.assert_close(invariance(a @ turn + 3, b @ turn + 3), invariance(a, b))
    torch.testing.assert_close(invariance(scale * a, scale * b), scale**2 * invariance(a, b))


@given(seed=SEEDS, scale=SCALES)
def test_barlow_twins(seed: int, scale: float) -> None:
    """Zero where the cross-correlation is the identity; a collapsed dimension has no correlation and counts as 0: D in all."""
    a, b = rows(seed), rows(seed + 5)
    assert barlow(white(seed), scale * white(seed) + 1).item() == pytest.approx(0, abs=1e-9)
    assert barlow(POINT, POINT).item() == pytest.approx(WIDTH)
    scales = 0.5 + drawn(2, WIDTH, seed=seed).abs()
    torch.testing.assert_close(barlow(scales[0] * a + 3, scales[1] * b - 3), barlow(a, b), atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(barlow(scale * a, scale * b), barlow(a, b), atol=1e-9, rtol=1e-7)


@given(seed=SEEDS, scale=SCALES)
def test_the_contrast_of_simclr(seed: int, scale: float) -> None:
    """Never zero; log(2N - 1) where everything has collapsed."""
    a, b = drawn(2, ROWS, WIDTH, seed=seed)
    assert ntxent(a, a) > 0
    assert ntxent(POINT, POINT).item() == pytest.approx(math.log(2 * ROWS - 1))
    turn = rotation(seed)
    torch.testing.assert_close(ntxent(a @ turn, b @ turn), ntxent(a, b))
    torch.testing.assert_close(ntxent(scale * a, b / scale), ntxent(a, b), atol=1e-5, rtol=1e-5)


@settings(max_examples=8)
@given(seed=st.integers(0, 1000))
def test_sigreg(seed: int) -> None:
    """About 0 a row for a standard normal alone; 0.409 N at a point (0.402 N on seventeen knots); least at scale 1."""
    point = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    assert sigreg(point).item() == pytest.approx(0.402048 * ROWS, rel=1e-5)
    z = drawn(1000, WIDTH, seed=seed)
    values = {scale: sigreg(scale * z, step=seed).item() for scale in (0.5, 0.8, 1.0, 1.25, 2.0)}
    assert min(values, key=lambda scale: values[scale]) == 1.0
    assert values[1.0] < 3 < values[0.5] / 10
    rows = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sigreg(z[rows]), sigreg(z))
    turned = sigreg(2 * z @ rotation(seed), slices=512).item()
    assert turned == pytest.approx(sigreg(2 * z, slices=512).item(), rel=0.1)


@given(seed=SEEDS, scale=SCALES)
def test_the_effective_rank(seed: int, scale: float) -> None:
    """1 where everything has collapsed, and as many as there are directions of equal spread."""
    z = rows(seed)
    assert measure(POINT)["rank"] == 1
    assert measure(white(seed))["rank"] == pytest.approx(WIDTH)
    for other in (scale * z, z @ rotation(seed), z[order(seed)], z + 3):
        assert measure(other)["rank"] == pytest.approx(measure(z)["rank"], rel=1e-5)


@given(seed=SEEDS, scale=SCALES)
def test_temporal_similarity_and_inverse_dynamics(seed: int, scale: float) -> None:
    """The one is minimised by collapse, alone; the other is not: equal states tell the mean action at best."""
    time, actions = torch.zeros(ROWS, 4, dtype=torch.int64), drawn(ROWS, 3, 2, seed=seed)

    def term(prevention: torch.nn.Module, tokens: Tensor) -> Tensor:
        states = States(tokens, time, actions=actions)
        here = Here(lambda: states, lambda: states, lambda encoder: None, Key.of(0), Key.of(0, 1), 1)
        (value,) = prevention.double().terms(Pair(tokens, tokens, tokens), here).values()
        return value

    moving, still = drawn(ROWS, 4, 1, WIDTH, seed=seed), torch.full((ROWS, 4, 1, WIDTH), 1.5, dtype=torch.float64)
    smooth = TemporalSimilarity(Spec(WIDTH))
    assert term(smooth, still) == 0 < term(smooth, moving)
    torch.testing.assert_close(term(smooth, scale * moving + 3), scale**2 * term(smooth, moving))
    least = (actions - actions.mean((0, 1))).square().mean()
    assert term(InverseDynamics(Spec(WIDTH, actions=2), hidden=8), still) >= least
