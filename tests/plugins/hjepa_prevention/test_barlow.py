from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Here, Pair, Spec
from hjepa.randomness import Key
from hjepa_prevention.barlow import Barlow

HERE = Here(lambda: None, lambda: None, lambda encoder: None, Key.of(0), Key.of(0, 1), 1)


def terms(prediction: Tensor, target: Tensor, **options: object) -> dict[str, Tensor]:
    made = Barlow(Spec(prediction.shape[-1]), **options)
    return made.terms(Pair(prediction, target, prediction), HERE)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_four_points_by_hand() -> None:
    """The columns (1, -1, 1, -1) and (1, 1, -1, -1), and both of them swapped: correlations 0 with their own, 1 with the other."""
    z = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    assert {name: term.item() for name, term in terms(z, 3 * z + 5).items()} == pytest.approx(
        {"diagonal": 0, "off_diagonal": 0}
    )
    assert {name: term.item() for name, term in terms(z, z.flip(1)).items()} == pytest.approx(
        {"diagonal": 2, "off_diagonal": 2 * 5e-3}
    )
    assert terms(z, -z)["diagonal"].item() == pytest.approx(8)


def test_a_plain_sum_gives_the_same() -> None:
    a, b = drawn(30, 5), drawn(30, 5, seed=1)
    correlation = torch.corrcoef(torch.cat([a, b], 1).T)[:5, 5:]
    own, others = correlation.diagonal(), correlation[~torch.eye(5, dtype=torch.bool)]
    on, off = (1 - own).square(), others.square()
    expected = {"nothing": (on.sum(), off.sum()), "dimension": (on.mean(), off.sum() / 5), "pair": (on.mean(), off.mean())}
    for divided_by, (first, second) in expected.items():
        result = terms(a, b, divided_by=divided_by, weight=2.0, off_diagonal=0.1)
        torch.testing.assert_close(result, {"diagonal": 2 * first, "off_diagonal": 0.2 * second})


def test_a_collapsed_side_costs_one_a_dimension() -> None:
    for a, b in ((torch.full((8, 5), 3.0), drawn(8, 5).float()), (torch.zeros(8, 5), torch.zeros(8, 5))):
        assert {name: term.item() for name, term in terms(a, b).items()} == {"diagonal": 5, "off_diagonal": 0}
    rounding = 1e-8 * drawn(8, 5)
    assert terms(rounding, rounding)["diagonal"].item() == pytest.approx(5)


def test_over_names_the_rows_of_a_correlation() -> None:
    a, b = drawn(5, 3, 2, 4), drawn(5, 3, 2, 4, seed=1)
    whole = {
        "all": [(a.reshape(-1, 4), b.reshape(-1, 4))],
        "step": [(a[:, t].reshape(-1, 4), b[:, t].reshape(-1, 4)) for t in range(3)],
        "batch": [(a[:, 0].reshape(-1, 4), b[:, 0].reshape(-1, 4))],
        "time": [(a[i, :, n], b[i, :, n]) for i in range(5) for n in range(2)],
    }
    for over, groups in whole.items():
        alone = [terms(first, second) for first, second in groups]
        for name, value in terms(a, b, over=over).items():
            torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).mean())


def test_it_brings_near_points_to_agree_and_to_spread() -> None:
    a, b = ((1e-3 * drawn(64, 4, seed=seed)).requires_grad_() for seed in (0, 1))
    optimizer = torch.optim.Adam([a, b], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        sum(terms(a, b, off_diagonal=0.1).values()).backward()
        optimizer.step()
    correlation = torch.corrcoef(torch.cat([a, b], 1).T.detach())[:4, 4:]
    assert correlation.diagonal().min() > 0.9
    assert (correlation - correlation.diag().diag()).abs().max() < 0.2
