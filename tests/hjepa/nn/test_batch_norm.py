"""Batch normalisation beside torch's own, and where torch has none: a single row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hjepa.nn.batch_norm import BatchNorm


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 2**31), st.integers(2, 9), st.integers(1, 5))
def test_it_is_torchs_own_while_training(seed: int, rows: int, width: int) -> None:
    x, other = (7 + 3 * drawn(seed, rows, 2, width).requires_grad_() for _ in "ab")
    x.retain_grad(), other.retain_grad()
    ours, theirs = BatchNorm(width), torch.nn.BatchNorm1d(width)
    normed, expected = ours(x), theirs(other.flatten(0, 1)).view_as(other)
    torch.testing.assert_close(normed, expected, atol=1e-4, rtol=1e-4)
    normed.pow(3).sum().backward(), expected.pow(3).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, atol=1e-3, rtol=1e-3)


def test_at_rest_it_knows_what_it_has_seen() -> None:
    norm = BatchNorm(3)
    first, second = 5 + drawn(0, 400, 3), 9 + 2 * drawn(1, 400, 3)
    norm(first)
    torch.testing.assert_close(norm.mean, first.mean(0))
    torch.testing.assert_close(norm.variance, first.var(0, correction=0))
    norm(second)
    torch.testing.assert_close(norm.mean, 0.9 * first.mean(0) + 0.1 * second.mean(0))
    before, alone = norm.mean.clone(), norm.eval()(second[:1])
    torch.testing.assert_close(norm(second)[:1], alone)
    assert torch.equal(norm.mean, before)


def test_a_single_row_changes_nothing_and_is_finite() -> None:
    norm = BatchNorm(3)
    norm(5 + drawn(0, 40, 3))
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    row = drawn(1, 1, 1, 3).requires_grad_()
    given_ = norm(row)
    assert torch.equal(given_, norm.eval()(row))
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    given_.sum().backward()
    assert row.grad.isfinite().all() and row.grad.all()
    fresh = BatchNorm(3)
    assert fresh(row).isfinite().all() and not fresh.seen


def test_half_precision_keeps_its_type_and_its_statistics_do_not() -> None:
    norm = BatchNorm(3)
    x = (1000 + drawn(0, 500, 3)).to(torch.bfloat16)
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm.mean, x.float().mean(0))
    assert norm(torch.zeros(4, 3)).isfinite().all()


def test_a_new_one_has_the_scale_at_rest_that_it_starts_to_train_with() -> None:
    x = 5 + 0.01 * drawn(0, 40, 3)
    at_rest = BatchNorm(3).eval()
    torch.testing.assert_close(at_rest(x), BatchNorm(3)(x))
    assert not at_rest.seen and at_rest(x[:1]).isfinite().all()
