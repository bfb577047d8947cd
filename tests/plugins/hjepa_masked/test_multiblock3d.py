"""Blocks of a clip: families, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hjepa.contracts import Spec
from hjepa.randomness import Key
from hjepa_masked.multiblock3d import Multiblock3d


def test_families_are_drawn_apart_and_can_be_left_out() -> None:
    key = Key.of(0).fold(torch.arange(4))
    both, long = Multiblock3d(Spec(grid=(2, 8, 8))), Multiblock3d(Spec(grid=(2, 8, 8)), short=(0, 0.15))
    assert (both.families, long.families) == (("short", "long"), ("long",))
    assert torch.equal(both.sample(key)["long"][1].values, long.sample(key)["long"][1].values)
    alike = Multiblock3d(Spec(grid=(2, 8, 8)), short=(2, 0.7)).sample(key)
    assert not torch.equal(alike["short"][1].lengths, alike["long"][1].lengths)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"short": (0, 0.1), "long": (0, 0.1)}, "short and long both have 0 blocks"),
        ({"long": (2, 1.0)}, "long: one block can leave .4 x 4 - 4 x 4. x 2 steps = 0 tokens"),
        ({"max_temporal_keep": 0.5, "min_keep": 6}, "x 1 steps = [45] tokens of context, and min_keep is 6"),
        ({"short": (8, 0.0)}, "short is"),
        ({"temporal_scale": (0.5, 2.0)}, "temporal_scale is"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Multiblock3d(Spec(grid=(2, 4, 4)), **options)
