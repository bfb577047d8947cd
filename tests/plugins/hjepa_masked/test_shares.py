"""An exact share of what a row has; and maskings that ask for none of it, or for all, are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hjepa.contracts import Spec
from hjepa.randomness import Key
from hjepa_masked.causal import Causal
from hjepa_masked.random import Random
from hjepa_masked.shares import drawn_share
from hjepa_masked.tube import Tube


def test_every_token_has_the_same_chance() -> None:
    there = torch.ones(20_000, 10, dtype=torch.bool)
    there[:, 3] = False
    drawn = drawn_share(Key.of(0).fold(torch.arange(20_000)), 0.4, there)
    assert set(drawn.sum(1).tolist()) == {4}
    share = drawn.double().mean(0)
    assert share[3] == 0
    assert (share[there[0]] - 4 / 9).abs().max() < 0.02


def test_rows_of_few_tokens_keep_one() -> None:
    there = torch.arange(6) < torch.tensor([0, 1, 2, 3])[:, None]
    drawn = drawn_share(Key.of(0).fold(torch.arange(4)), 0.9, there)
    assert drawn.sum(1).tolist() == [0, 0, 1, 2]
    assert not (drawn & ~there).any()


@pytest.mark.parametrize(
    ("kind", "grid", "options", "said"),
    [
        (Random, (4, 4), {"ratio": 0.01}, "ratio 0.01 of 16 tokens is 0: some must be masked, and some be left"),
        (Random, (4, 4), {"ratio": 1.0}, "is 16"),
        (Random, (), {}, "is 1"),
        (Tube, (5, 2, 2), {"ratio": 0.9}, "ratio 0.9 of 4 places of a frame is 4"),
        (Causal, (1, 4, 4), {}, "no time"),
        (Causal, (), {}, "no time"),
        (Causal, (4,), {"seen": (0.6, 0.5)}, "seen is"),
    ],
)
def test_what_cannot_work_is_refused(kind: Any, grid: tuple[int, ...], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(Spec(grid=grid), **options)
