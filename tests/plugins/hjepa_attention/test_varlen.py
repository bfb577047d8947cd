"""torch's kernel for packed sets: what it is given, and what it refuses. It computes nothing without a GPU."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen as library

from hjepa.errors import Mistake
from hjepa.nn import BlockCausal, Sets, attend
from hjepa_attention.varlen import Varlen


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """What `varlen_attn` computes, of (M, H, D)."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    ends = zip(cu_seq_q[:-1], cu_seq_q[1:], cu_seq_k[:-1], cu_seq_k[1:], strict=True)
    own = [(query[a:b].transpose(0, 1), *(x[c:d].transpose(0, 1) for x in (key, value))) for a, b, c, d in ends]
    return torch.cat([((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(0, 1) for q, k, v in own])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("mask", [None, Sets(torch.tensor([2, 5]), torch.tensor([4, 3])), Sets(torch.tensor([4, 3]))])
def test_sets_and_rows_lie_one_after_the_other(mask: Sets | None, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 1 if mask else rows
    monkeypatch.setattr(library, "varlen_attn", by_definition)
    monkeypatch.setattr(Varlen, "refuses", lambda *seen: "")
    query, key, value = torch.randn(3, rows, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Varlen()(query, key, value, mask), attend(query, key, value, mask))


def test_the_library_takes_what_it_is_given() -> None:
    given = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert list(inspect.signature(library.varlen_attn).parameters)[:7] == given


@pytest.mark.parametrize(
    ("mask", "given", "said"),
    [
        (torch.ones(2, 2, dtype=torch.bool), {}, "no Tensor as mask: use `sdpa`, or `auto`"),
        (BlockCausal(1), {}, "no BlockCausal as mask"),
        (Sets(torch.tensor([2])), {"shape": (2, 1, 2, 8)}, r"one sequence \(1, M, D\), and here are 2"),
        (None, {"dtype": torch.float32}, r"bfloat16 or float16, and this is torch.float32: train in bfloat16"),
        (None, {"shape": (1, 1, 2, 12)}, "a width that 8 divides, at most 256, and here it is 12"),
        (None, {"shape": (1, 1, 2, 264)}, "at most 256, and here it is 264"),
        (None, {"device": torch.device("cpu")}, "^varlen computes on a GPU, and this is on cpu: use `sdpa`, or `auto`$"),
    ],
)
def test_it_says_why_it_cannot_and_what_to_do(mask: Any, given: dict[str, Any], said: str) -> None:
    query: Any = SimpleNamespace(**{"device": torch.device("cuda"), "dtype": torch.bfloat16, "shape": (1, 1, 2, 8), **given})
    assert re.search(said, Varlen().refuses(query, mask))


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_older_gpus_are_refused(capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 1, 2, 8))
    assert bool(Varlen().refuses(query, None)) == refused


def test_it_stops_with_the_reason() -> None:
    x = torch.zeros(1, 1, 2, 8)
    with pytest.raises(Mistake, match="varlen computes on a GPU"):
        Varlen()(x, x, x, None)
