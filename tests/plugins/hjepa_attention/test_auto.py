"""The fastest way that can, and one line about it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from hjepa.nn import BlockCausal, Mask, Sets, attend
from hjepa_attention import auto
from hjepa_attention.auto import Auto

SETS = Sets(torch.tensor([3, 2]))
X = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0))


class Way:
    """Refuses or not, and remembers whether it was taken."""

    def __init__(self, refusal: str) -> None:
        self.refusal, self.taken = refusal, 0

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask) -> torch.Tensor:
        self.taken += 1
        return value

    def refuses(self, query: torch.Tensor, mask: Mask) -> str:
        return self.refusal


@pytest.mark.parametrize("mask", [None, SETS, BlockCausal(1), torch.ones(5, 5, dtype=torch.bool).tril()])
def test_on_a_cpu_it_is_what_torch_computes(mask: Any) -> None:
    assert torch.equal(Auto()(X, X, X, mask), attend(X, X, X, mask))
    assert Auto().refuses(X, mask) == ""


def test_the_first_that_can_takes_the_sets_and_no_other_mask() -> None:
    found, first, second, last = Auto(), Way("no GPU"), Way(""), Way("")
    found.ways = (first, second, last)  # type: ignore[assignment]
    found(X, X, X, SETS)
    found(X, X, X, None)
    assert (first.taken, second.taken, last.taken) == (0, 1, 0)


def test_it_prefers_one_kernel_to_many() -> None:
    assert [type(way).__name__ for way in Auto().ways] == ["Varlen", "XFormers", "SDPA"]


def test_it_says_once_which(caplog: pytest.LogCaptureFixture) -> None:
    auto._said.cache_clear()
    with caplog.at_level(logging.INFO, logger="hjepa"):
        for _ in range(3):
            Auto()(X, X, X, SETS)
            Auto()(X, X, X, None)
    assert caplog.messages == ["attention of packed sets on cpu in torch.float32: sdpa"]
