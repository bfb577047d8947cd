"""xformers' own masks say what ours say; its layout; what it refuses. The library is imported, and computes nothing without a GPU."""

from __future__ import annotations

import logging
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.errors import Mistake
from hjepa.nn import BlockCausal, Sets, attend
from hjepa_attention import xformers
from hjepa_attention.xformers import XFormers, bias_of

pytest.importorskip("xformers")


def seen(bias: Any, queries: int, keys: int) -> Tensor:
    """(queries, keys) bool, of what is added to the scores."""
    added = bias.materialize((queries, keys))
    assert set(added.unique().tolist()) <= {0.0, float("-inf")}
    return added == 0


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=6), st.booleans())
def test_sets_are_its_block_diagonal(lengths: list[tuple[int, int]], cross: bool) -> None:
    queries, keys = (torch.tensor(side) for side in zip(*lengths, strict=True))
    sets = Sets(queries, keys) if cross else Sets(queries)
    shape = int(queries.sum()), int((keys if cross else queries).sum())
    assert torch.equal(seen(bias_of(sets), *shape), sets.materialize(*shape))


@pytest.mark.parametrize("length", [1, 5])
def test_steps_of_one_token_are_its_causal_mask(length: int) -> None:
    from xformers.ops.fmha.attn_bias import LowerTriangularMask

    assert torch.equal(seen(LowerTriangularMask(), length, length), BlockCausal(1).materialize(length, length))


def test_steps_before_the_queries_are_its_causal_mask_from_the_bottom_right() -> None:
    from xformers.ops.fmha.attn_bias import LowerTriangularFromBottomRightMask

    assert torch.equal(seen(LowerTriangularFromBottomRightMask(), 3, 8), BlockCausal(1).materialize(3, 8))


def by_definition(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any) -> Tensor:
    """What `memory_efficient_attention` computes, of (B, M, H, K)."""
    assert query.shape[2:] == key.shape[2:] == (3, 8)
    scores = torch.einsum("bmhk,bshk->bhms", query, key) / 8**0.5
    if attn_bias is not None:
        scores = scores + attn_bias.materialize(tuple(scores.shape[-2:]))
    return torch.einsum("bhms,bshk->bmhk", scores.softmax(-1), value)


@pytest.mark.parametrize("mask", [None, Sets(torch.tensor([2, 5]), torch.tensor([4, 3])), Sets(torch.tensor([4, 3]))])
def test_tokens_come_before_heads_there(mask: Sets | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xformers._library(), "memory_efficient_attention", by_definition)
    monkeypatch.setattr(XFormers, "refuses", lambda *seen: "")
    query, key, value = torch.randn(3, 1, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(XFormers()(query, key, value, mask), attend(query, key, value, mask))


def test_the_mask_is_made_once_for_all_blocks() -> None:
    sets = Sets(torch.tensor([2, 3]))
    assert bias_of(sets) is bias_of(sets) and bias_of(sets) is not bias_of(Sets(torch.tensor([2, 3])))


def test_without_a_gpu_it_says_what_to_use() -> None:
    x = torch.zeros(1, 1, 2, 8)
    with pytest.raises(Mistake, match=r"^xformers computes on a GPU, and this is on cpu: use `sdpa`, or `auto`$"):
        XFormers()(x, x, x, None)


@pytest.mark.parametrize(
    ("mask", "rows", "said"),
    [
        (torch.ones(2, 2, dtype=torch.bool), 1, "no Tensor as mask"),
        (BlockCausal(1), 1, "no BlockCausal as mask"),
        (Sets(torch.tensor([2])), 2, r"one sequence \(1, M, D\), and here are 2"),
    ],
)
def test_masks_it_is_not_asked_for(mask: Any, rows: int, said: str) -> None:
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(rows, 1, 2, 8))
    assert re.search(said, XFormers().refuses(on_gpu, mask))


def test_what_no_kernel_computes_is_refused_in_the_words_of_the_library() -> None:
    xformers._reasons.cache_clear()
    assert "device=cpu (supported: {'cuda'})" in xformers._reasons(torch.device("cpu"), torch.float64, 8)


def test_where_it_cannot_be_imported_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    xformers._library.cache_clear()
    xformers._reasons.cache_clear()
    try:
        assert xformers._reasons(torch.device("cpu"), torch.float32, 8).startswith("it cannot be imported: ")
    finally:
        xformers._reasons.cache_clear()


def test_it_is_imported_quietly() -> None:
    xformers._library()
    assert logging.getLogger("xformers").level == logging.ERROR
