"""Blocks of an image: what is refused, and grids on which published samplers never end."""

from __future__ import annotations

import pytest
import torch

from hjepa.contracts import Spec
from hjepa.randomness import Key
from hjepa_masked.multiblock import Multiblock


def test_it_ends_where_a_target_has_less_than_min_keep_tokens() -> None:
    """112 pixels in patches of 16, with everything as it is by default: targets of at most 12 tokens, and contexts of at least 10."""
    context, *targets = Multiblock(Spec(grid=(7, 7))).sample(Key.of(0).fold(torch.arange(500)))["block"]
    assert context.lengths.min() >= 10
    assert max(int(target.lengths.max()) for target in targets) == 12


@pytest.mark.parametrize(
    ("grid", "options", "said"),
    [
        ((3, 3), {"scale": (0.5, 0.9)}, "3 x 3 places and min_keep = 10 are 9 [+] 10 = 19 tokens, and there are 9"),
        ((4, 4), {"context_scale": (0.1, 1.0)}, "context_scale: 0.1 of 16 tokens are 1, and min_keep is 10"),
        ((4, 4), {"scale": (0.3, 0.2)}, r"scale is \[0.3, 0.2\]: write the smaller end first"),
        ((4, 4), {"scale": (0.2, 1.2)}, "at most 1"),
        ((4, 4), {"aspect": (0.0, 1.0)}, "above 0"),
        ((), {}, r"grid \[\]"),
        ((2, 2, 2, 2), {}, r"grid \[2, 2, 2, 2\]"),
    ],
)
def test_what_cannot_work_is_refused(grid: tuple[int, ...], options: dict[str, tuple[float, float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Multiblock(Spec(grid=grid), **options)
