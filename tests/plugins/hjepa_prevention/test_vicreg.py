from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hjepa.contracts import Here, Pair, Spec
from hjepa.randomness import Key
from hjepa_prevention.vicreg import Vicreg

HERE = Here(lambda: None, lambda: None, lambda encoder: None, Key.of(0), Key.of(0, 1), 1)
GOLDEN = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]])


def terms(z: Tensor, **options: object) -> dict[str, Tensor]:
    made = Vicreg(Spec(z.shape[-1]), **({"std": 1.0, "cov": 1.0} | options))
    return made.terms(Pair(z, z, z), HERE)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_four_points_by_hand() -> None:
    """Variances 2/3 and 8/3, no covariance."""
    result = terms(GOLDEN)
    assert result["std"].item() == pytest.approx((1 - 0.816558) / 2, abs=1e-6)
    assert result["cov"].item() == 0


def test_three_points_with_a_covariance_by_hand() -> None:
    """Covariance of (0,0), (1,2), (2,1): 1 on the diagonal, 1/2 beside it."""
    z = torch.tensor([[0.0, 0], [1, 2], [2, 1]])
    assert terms(z)["cov"].item() == pytest.approx(0.25)
    assert terms(z, covariance_by="dimension")["cov"].item() == pytest.approx(0.25)
    z = torch.cat([z, torch.zeros(3, 1)], 1)
    assert terms(z)["cov"].item() == pytest.approx(0.5 / 6)
    assert terms(z, covariance_by="dimension")["cov"].item() == pytest.approx(0.5 / 3)


def test_collapsed_embeddings_cost_the_whole_hinge_and_no_covariance() -> None:
    result = terms(torch.full((8, 5), 3.0))
    assert result["std"].item() == pytest.approx(0.99, abs=1e-6)
    assert result["cov"].item() == 0


@pytest.mark.parametrize(("rows", "width"), [(40, 6), (6, 40), (8, 8)])
def test_either_gram_matrix_gives_the_sum_over_pairs(rows: int, width: int) -> None:
    z = drawn(rows, width, dtype=torch.float64)
    covariance = torch.cov(z.T)
    pairs = sum(covariance[i, j].item() ** 2 for i in range(width) for j in range(width) if i != j)
    assert terms(z)["cov"].item() == pytest.approx(pairs / (width * (width - 1)), rel=1e-10)


@pytest.mark.parametrize(("rows", "width"), [(4, 200), (200, 4)])
def test_the_larger_gram_matrix_is_never_made(rows: int, width: int) -> None:
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, Tensor) else 0)
            return result

    z = drawn(rows, width).requires_grad_()
    with Sizes():
        terms(z)["cov"].backward()
    assert max(sizes) == rows * width


@pytest.mark.parametrize("over", ["all", "step", "batch", "time"])
@pytest.mark.parametrize("shape", [(5, 3, 2, 4), (2, 4, 1, 9)])
def test_gradients_are_right(over: str, shape: tuple[int, ...]) -> None:
    z = (0.5 * drawn(*shape, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(terms(x, over=over).values()), (z,))


def test_over_names_the_samples_of_a_statistic() -> None:
    z = drawn(5, 3, 2, 4)
    expected = {
        "step": [z[:, t].reshape(-1, 4) for t in range(3)],
        "batch": [z[:, 0].reshape(-1, 4)],
        "time": [z[b, :, n] for b in range(5) for n in range(2)],
        "all": [z.reshape(-1, 4)],
    }
    for over, groups in expected.items():
        for name, value in terms(z, over=over).items():
            torch.testing.assert_close(value, torch.stack([terms(group)[name] for group in groups]).mean())


def test_weights_multiply_and_zero_leaves_out() -> None:
    z = drawn(8, 4)
    once, twice = terms(z), terms(z, std=2.0, cov=3.0)
    torch.testing.assert_close(twice["std"], 2 * once["std"])
    torch.testing.assert_close(twice["cov"], 3 * once["cov"])
    assert list(terms(z, std=0.0)) == ["cov"]
    assert list(terms(z, cov=0.0)) == ["std"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("over", ["all", "step", "batch", "time"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 1, 6), (3, 2, 2, 6)])
def test_everything_is_finite(shape: tuple[int, ...], scale: float, over: str, dtype: torch.dtype) -> None:
    """P14."""
    z = (drawn(*shape) * scale).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = terms(z, over=over)
    total = sum(result.values())
    total.backward()
    assert total.isfinite()
    assert z.grad.isfinite().all() or (dtype, scale) == (torch.float16, 1e4)  # which cannot hold a gradient of about 1e12


def test_autocast_changes_nothing() -> None:
    z = drawn(50, 8).requires_grad_()
    total = sum(terms(z).values())
    (gradient,) = torch.autograd.grad(total, z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = sum(terms(z).values())
        assert torch.equal(mixed, total)
        assert torch.equal(torch.autograd.grad(mixed, z)[0], gradient)


def test_a_projector_has_statistics_of_its_own() -> None:
    torch.manual_seed(0)
    made = Vicreg(Spec(4), projector=(16, 7))
    assert [tuple(p.shape) for p in made.parameters() if p.dim() == 2] == [(16, 4), (7, 16)]
    z = drawn(9, 4).requires_grad_()
    result = made.terms(Pair(z, z, z), HERE)
    seen = made.projector(z)
    plain = Vicreg(Spec(7)).terms(Pair(seen, seen, seen), HERE)
    for name in ("std", "cov"):
        assert torch.equal(result[name], plain[name])
    sum(result.values()).backward()
    assert all(p.grad is not None for p in made.parameters())


def test_it_spreads_what_is_nearly_collapsed() -> None:
    """From a spread of 1e-3: equal embeddings have equal gradients, so from 0 nothing could part them."""
    z = (1e-3 * drawn(64, 4)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        sum(terms(z).values()).backward()
        optimizer.step()
    covariance = torch.cov(z.detach().T)
    assert covariance.diagonal().min() > 0.9
    assert (covariance - covariance.diag().diag()).abs().max() < 0.1
