"""Attention against its definition; what is masked has no influence."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa.nn import attend


def _drawn(seed: int, queries: int, keys: int, masked: bool) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 3, queries, 8, generator=draw)
    key, value = torch.randn(2, 2, 3, keys, 8, generator=draw)
    mask = torch.rand(2, 1, queries, keys, generator=draw) < (0.5 if masked else 2)
    mask[..., 0] = True
    return query, key, value, mask


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), queries=st.integers(1, 5), keys=st.integers(1, 7), masked=st.booleans())
def test_equals_its_definition(seed: int, queries: int, keys: int, masked: bool) -> None:
    query, key, value, mask = (x.double() if x.is_floating_point() else x for x in _drawn(seed, queries, keys, masked))
    scores = (query @ key.transpose(-1, -2) / 8**0.5).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(attend(query, key, value, mask if masked else None), scores.softmax(-1) @ value)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), queries=st.integers(1, 5), keys=st.integers(1, 7))
def test_what_is_masked_changes_no_bit(seed: int, queries: int, keys: int) -> None:
    query, key, value, mask = _drawn(seed, queries, keys, masked=True)
    nobody_sees = ~mask.any(-2)[:, :, :, None]
    changed = attend(query, torch.where(nobody_sees, 100.0, key), torch.where(nobody_sees, -1e4, value), mask)
    assert torch.equal(changed, attend(query, key, value, mask))
