from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Here, Pair, Spec
from hjepa.randomness import Key
from hjepa_prevention import sigreg
from hjepa_prevention.sigreg import Sigreg


def here(step: int = 1) -> Here:
    return Here(lambda: None, lambda: None, lambda encoder: None, Key.of(0), Key.of(0, "frame", step), step)


def score(z: Tensor, step: int = 1, **options: object) -> Tensor:
    settings = {"weight": 1.0, "over": "all", "times_rows": False} | options
    return Sigreg(Spec(z.shape[-1]), **settings).terms(Pair(z, z, z), here(step))["normal"]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quantiles(count: int = 4001) -> Tensor:
    """(count, 1): a sample of N(0, 1) without luck."""
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]


def exact(mean: float, deviation: float) -> float:
    """The statistic of N(mean, deviation²) over the whole line."""
    variance = deviation**2
    middle = 2 * math.exp(-(mean**2) / (2 * (2 + variance))) / math.sqrt(2 + variance)
    return math.sqrt(2 * math.pi) * (1 / math.sqrt(1 + 2 * variance) - middle + 1 / math.sqrt(3))


def test_the_exact_values_that_others_are_compared_with() -> None:
    values = [exact(0, deviation) for deviation in (0, 0.5, 1, 2, 4)]
    assert values == pytest.approx([0.408923, 0.1517, 0, 0.2361, 0.7019], abs=1e-4)


@pytest.mark.parametrize(("mean", "deviation"), [(0, 0.0), (0, 0.5), (0, 1.0), (0, 2.0), (0, 4.0), (1, 1.0), (3, 0.5)])
def test_normal_samples_score_the_integral(mean: float, deviation: float) -> None:
    z = mean + deviation * quantiles()
    assert score(z, reach=8.0, knots=101, slices=1).item() == pytest.approx(exact(mean, deviation), abs=2e-4)


def test_a_point_scores_what_seventeen_knots_see_of_it() -> None:
    assert score(torch.zeros(10, 4)).item() == pytest.approx(0.402048, abs=1e-6)
    assert score(torch.zeros(10, 4), times_rows=True).item() == pytest.approx(4.02048, abs=1e-5)


def test_normal_embeddings_score_one_over_their_number() -> None:
    """The expected score of N rows is (1 - 1/sqrt 3) sqrt(2 pi) / N = 1.0594 / N over the whole line."""
    for rows in (50, 400):
        scores = [score(drawn(rows, 256, seed=seed), step=seed, times_rows=True, slices=64).item() for seed in range(50)]
        assert sum(scores) / len(scores) == pytest.approx(1.0594, rel=0.06)


def test_a_plain_sum_gives_the_same() -> None:
    z = drawn(30, 6, dtype=torch.float64)
    made = Sigreg(Spec(6), slices=20)
    knots = torch.linspace(-3, 3, 33, dtype=torch.float64)
    waves = torch.exp(1j * knots * (z @ made._lines(z, here().step_key))[..., None]).mean(0)
    wanted = torch.exp(-knots.square() / 2)
    expected = torch.trapezoid((waves - wanted).abs().square() * wanted, knots).mean()
    torch.testing.assert_close(score(z, slices=20), expected)


def test_chunks_change_neither_value_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    z = drawn(30, 6, dtype=torch.float64).requires_grad_()
    values = []
    for chunk in (1, 100, 1 << 16):
        monkeypatch.setattr(sigreg, "CHUNK", chunk)
        value = score(z, slices=23)
        values.append((value, *torch.autograd.grad(value, z)))
    for value, gradient in values[:-1]:
        torch.testing.assert_close(value, values[-1][0])
        torch.testing.assert_close(gradient, values[-1][1])


@pytest.mark.parametrize("over", ["all", "step", "batch", "time"])
def test_gradients_are_right(over: str) -> None:
    z = (2 * drawn(3, 2, 2, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: score(x, over=over, slices=5), (z,))


@pytest.mark.parametrize("times_rows", [True, False])
def test_over_names_the_samples_of_a_statistic(times_rows: bool) -> None:
    z = drawn(5, 3, 2, 4)
    expected = {
        "step": [z[:, t].reshape(-1, 4) for t in range(3)],
        "batch": [z[:, 0].reshape(-1, 4)],
        "time": [z[b, :, n] for b in range(5) for n in range(2)],
        "all": [z.reshape(-1, 4)],
    }
    for over, groups in expected.items():
        alone = torch.stack([score(group, times_rows=times_rows) for group in groups]).mean()
        torch.testing.assert_close(score(z, over=over, times_rows=times_rows), alone)


def test_lines_are_of_unit_length_and_drawn_from_the_step_alone() -> None:
    made, z = Sigreg(Spec(6)), drawn(10, 6)
    lines = made._lines(z, here(1).step_key)
    torch.testing.assert_close(lines.norm(dim=0), torch.ones(256))
    assert torch.equal(made._lines(z, here(1).step_key), lines)
    assert not torch.equal(made._lines(z, here(2).step_key), lines)
    assert made.state_dict() == {}
    assert torch.equal(score(z, step=1), score(z, step=1))
    assert not torch.equal(score(z, step=1), score(z, step=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("over", ["all", "step", "batch", "time"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 6), (3, 2, 2, 6)])
def test_everything_is_finite(shape: tuple[int, ...], scale: float, over: str, dtype: torch.dtype) -> None:
    """P13, P14."""
    z = (drawn(*shape) * scale).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = score(z, over=over, slices=8)
    value.backward()
    assert value.isfinite()
    assert z.grad.isfinite().all()


def test_autocast_changes_nothing() -> None:
    z = drawn(50, 8).requires_grad_()
    value = score(z)
    (gradient,) = torch.autograd.grad(value, z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = score(z)
    assert torch.equal(mixed, value)
    assert torch.equal(torch.autograd.grad(mixed, z)[0], gradient)


def test_it_brings_a_lattice_and_a_near_point_to_the_normal() -> None:
    """From a spread of 1e-3: equal embeddings have equal gradients, so from 0 nothing could part them."""
    for start in (1e-3 * drawn(64, 2), drawn(64, 2).sign() + 0.1 * drawn(64, 2, seed=1)):
        z = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.05)
        for step in range(150):
            optimizer.zero_grad()
            score(z, step=step, slices=32).backward()
            optimizer.step()
        assert score(z.detach()) < 0.02 < 0.05 < score(start)
        torch.testing.assert_close(torch.cov(z.detach().T), torch.eye(2), atol=0.35, rtol=0)


def test_it_looks_through_a_projector() -> None:
    z = drawn(9, 4).requires_grad_()
    made = Sigreg(Spec(4), projector=(8, 3), over="all")
    value = made.terms(Pair(z, z, z), here())["normal"]
    seen = made.projector(z)
    assert torch.equal(value, Sigreg(Spec(3), over="all").terms(Pair(seen, seen, seen), here())["normal"])


def test_one_knot_is_refused() -> None:
    with pytest.raises(ValueError, match="knots must be 2 or more"):
        Sigreg(Spec(4), knots=1)
