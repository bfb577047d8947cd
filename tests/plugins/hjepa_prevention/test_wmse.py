from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Here, Pair, Spec
from hjepa.randomness import Key
from hjepa_prevention.wmse import Wmse, whitened


def here(step: int = 1) -> Here:
    return Here(lambda: None, lambda: None, lambda encoder: None, Key.of(0), Key.of(0, step), step)


def white(prediction: Tensor, target: Tensor, step: int = 1, **options: object) -> Tensor:
    made = Wmse(Spec(prediction.shape[-1]), **options)
    return made.terms(Pair(prediction, target, prediction), here(step))["white"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_whitened_rows_have_the_identity_as_covariance() -> None:
    z = 5 + drawn(3, 60, 6) @ drawn(6, 6, seed=1)
    rows = whitened(z, 0.0)
    torch.testing.assert_close(rows.mean(1), torch.zeros(3, 6).double(), atol=1e-9, rtol=0)
    for group in rows:
        torch.testing.assert_close(torch.cov(group.T), torch.eye(6).double(), atol=1e-4, rtol=0)
    factor = torch.linalg.cholesky(torch.cov(z[0].T))
    torch.testing.assert_close(rows[0], (z[0] - z[0].mean(0)) @ torch.linalg.inv(factor).T, atol=1e-5, rtol=1e-5)


def test_a_line_by_hand() -> None:
    """(-1, 1) and (-3, 3) are the same when whitened: (-1/sqrt 2, 1/sqrt 2)."""
    z = torch.tensor([[-1.0], [1.0]])
    assert white(z, 3 * z + 2).item() == pytest.approx(0, abs=1e-6)
    assert white(z, -z).item() == pytest.approx(4)
    assert white(z, -z, normalise=False, weight=0.5, shrink=0.0).item() == pytest.approx(0.5 * 2, rel=1e-6)


def test_unlike_sides_are_two_apart() -> None:
    """Whitened rows without anything in common: 2 - 2 cos is 2, and the mean squared distance is 2 (R - 1) / R."""
    a, b = drawn(4000, 4), drawn(4000, 4, seed=1)
    assert white(a, b).item() == pytest.approx(2, abs=0.06)
    assert white(a, b, normalise=False).item() == pytest.approx(2, abs=0.06)


@pytest.mark.parametrize("normalise", [True, False])
def test_sub_batches_are_whitened_by_themselves(normalise: bool) -> None:
    a, b = drawn(23, 4), drawn(23, 4, seed=1)
    made = Wmse(Spec(4), size=7, partitions=2, normalise=normalise)
    dealt = made._dealt(a[None], here().step_key)
    assert dealt.shape == (6, 7)
    for part in (dealt[:3], dealt[3:]):
        assert len(part.unique()) == 21
    alone = torch.stack([white(a[rows], b[rows], normalise=normalise) for rows in dealt]).mean()
    torch.testing.assert_close(made.terms(Pair(a, b, a), here())["white"], alone)
    assert not torch.equal(made._dealt(a[None], here(2).step_key), dealt)


def test_fewer_rows_than_a_sub_batch_are_whitened_at_once() -> None:
    a, b = drawn(6, 4), drawn(6, 4, seed=1)
    torch.testing.assert_close(white(a, b, size=7), white(a, b))


def test_a_sub_batch_as_small_as_the_width_is_refused() -> None:
    for options in ({"size": 4}, {"size": 9, "projector": (12, 9)}):
        with pytest.raises(ValueError, match=r"size \d is too small: to whiten \d dimensions takes \d+ rows"):
            Wmse(Spec(4), **options)
    Wmse(Spec(4), size=5)


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
@pytest.mark.parametrize("shrink", [0.0, 1e-4, 1.0])
def test_fewer_rows_than_dimensions_stay_finite_and_small(rows: int, shrink: float) -> None:
    for scale in (0.0, 1e-6, 1.0, 1e4):
        z = (scale * drawn(rows, 6)).float()
        group = whitened(z, shrink)
        assert group.isfinite().all()
        assert group.norm() <= rows**0.5 * 6**0.5 + 1e-6


def test_over_names_the_rows_that_are_whitened_together() -> None:
    a, b = drawn(5, 6, 2, 3), drawn(5, 6, 2, 3, seed=1)
    whole = {
        "all": [(a.reshape(-1, 3), b.reshape(-1, 3))],
        "step": [(a[:, t].reshape(-1, 3), b[:, t].reshape(-1, 3)) for t in range(6)],
        "batch": [(a[:, 0].reshape(-1, 3), b[:, 0].reshape(-1, 3))],
        "time": [(a[i, :, n], b[i, :, n]) for i in range(5) for n in range(2)],
    }
    for over, groups in whole.items():
        torch.testing.assert_close(white(a, b, over=over), torch.stack([white(*group) for group in groups]).mean())


def test_shrinking_all_the_way_only_centres_and_scales() -> None:
    z = drawn(20, 3) * torch.tensor([3.0, 1.0, 0.1])
    centred = z - z.mean(0)
    torch.testing.assert_close(whitened(z, 1.0), centred / centred.var(0).mean().sqrt(), rtol=1e-6, atol=1e-6)


def test_near_points_are_brought_to_agree_without_shrinking() -> None:
    a, b = ((1e-3 * drawn(64, 4, seed=seed)).requires_grad_() for seed in (0, 1))
    optimizer = torch.optim.Adam([a, b], lr=0.01)
    for step in range(200):
        optimizer.zero_grad()
        white(a, b, step).backward()
        optimizer.step()
    assert white(a, b) < 0.1
    assert torch.linalg.eigvalsh(torch.cov(a.detach().T))[0] > 1e-3
