"""Attention against its definition; what is masked has no influence; packed sets are as if each were alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa.nn import Block, BlockCausal, Sets, attend, rotation

SEEDS = st.integers(0, 2**32)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def _drawn(seed: int, queries: int, keys: int, masked: bool) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 3, queries, 8, generator=draw)
    key, value = torch.randn(2, 2, 3, keys, 8, generator=draw)
    mask = torch.rand(2, 1, queries, keys, generator=draw) < (0.5 if masked else 2)
    mask[..., 0] = True
    return query, key, value, mask


@settings(deadline=None)
@given(seed=SEEDS, queries=st.integers(1, 5), keys=st.integers(1, 7), masked=st.booleans())
def test_equals_its_definition(seed: int, queries: int, keys: int, masked: bool) -> None:
    query, key, value, mask = (x.double() if x.is_floating_point() else x for x in _drawn(seed, queries, keys, masked))
    scores = (query @ key.transpose(-1, -2) / 8**0.5).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(attend(query, key, value, mask if masked else None), scores.softmax(-1) @ value)


@settings(deadline=None)
@given(seed=SEEDS, queries=st.integers(1, 5), keys=st.integers(1, 7))
def test_what_is_masked_changes_no_bit(seed: int, queries: int, keys: int) -> None:
    query, key, value, mask = _drawn(seed, queries, keys, masked=True)
    nobody_sees = ~mask.any(-2)[:, :, :, None]
    changed = attend(query, torch.where(nobody_sees, 100.0, key), torch.where(nobody_sees, -1e4, value), mask)
    assert torch.equal(changed, attend(query, key, value, mask))


def _with_gradient(mask: object, *leaves: torch.Tensor) -> list[torch.Tensor]:
    """What attention gives, and the gradients of query, key and value."""
    out = attend(*leaves, mask)
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


@settings(deadline=None)
@given(seed=SEEDS, lengths=LENGTHS, more=st.lists(st.integers(0, 4), min_size=5, max_size=5), cross=st.booleans())
@pytest.mark.parametrize("equal", [True, False])
def test_sets_see_as_their_mask_says(equal: bool, seed: int, lengths: list[int], more: list[int], cross: bool) -> None:
    """Packed attention is attention within each sequence, forward and backward; also where the keys are others."""
    lengths = lengths[:1] * len(lengths) if equal else lengths
    key_lengths = [each + (2 if equal else extra) for each, extra in zip(lengths, more, strict=False)] if cross else lengths
    sets = Sets(torch.tensor(lengths), torch.tensor(key_lengths) if cross else None)
    query, key, value, _ = _drawn(seed, sum(lengths), sum(key_lengths), masked=False)
    leaves = [x.double().requires_grad_() for x in (query, key, value)]
    mask = sets.materialize(sum(lengths), sum(key_lengths))
    assert mask.sum(1).tolist() == [each for each, own in zip(key_lengths, lengths, strict=True) for _ in range(own)]
    for one, other in zip(_with_gradient(sets, *leaves), _with_gradient(mask, *leaves), strict=True):
        torch.testing.assert_close(one, other)


def test_a_set_is_as_if_it_were_alone() -> None:
    """To the last bit."""
    query, key, value, _ = _drawn(0, 9, 9, masked=False)
    alone = attend(query[:, :, 2:7], key[:, :, 2:7], value[:, :, 2:7])
    assert torch.equal(attend(query, key, value, Sets(torch.tensor([2, 5, 2])))[:, :, 2:7], alone)


@settings(deadline=None)
@given(seed=SEEDS, steps=st.integers(1, 4), tokens=st.integers(1, 3), new=st.integers(1, 4))
def test_a_step_sees_itself_and_what_was_before(seed: int, steps: int, tokens: int, new: int) -> None:
    """Also where the first steps are known already, and only the last ask."""
    query, key, value, _ = _drawn(seed, steps * tokens, steps * tokens, masked=False)
    new = min(new, steps)
    out = attend(query[:, :, (steps - new) * tokens :], key, value, BlockCausal(tokens))
    for step in range(steps - new, steps):
        seen = (step + 1) * tokens
        own = attend(query[:, :, seen - tokens : seen], key[:, :, :seen], value[:, :, :seen])
        torch.testing.assert_close(out[:, :, seen - (steps - new + 1) * tokens :][:, :, :tokens], own)


def test_where_sets_end_is_asked_once() -> None:
    sets = Sets(torch.tensor([2, 3]), torch.tensor([4, 1]))
    assert sets.on_host is sets.on_host
    assert sets.on_host == ([2, 3], [4, 1])


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, lengths=LENGTHS)
def test_packed_blocks_are_blocks_of_each_set(seed: int, lengths: list[int]) -> None:
    """With positions that belong to the tokens; forward, and the gradients of the weights and of the tokens."""
    torch.manual_seed(seed % 1000)
    block = Block(16, 2, depth=1)
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(1, sum(lengths), 16, generator=draw, requires_grad=True)
    by = rotation(torch.randint(0, 9, (sum(lengths), 2), generator=draw), 8)
    leaves = [x, *block.parameters()]
    whole = block(x, Sets(torch.tensor(lengths)), by)
    alone = [block(own, None, turn) for own, turn in zip(x.split(lengths, 1), by.split(lengths), strict=True)]
    torch.testing.assert_close(whole, torch.cat(alone, 1))
    ours = torch.autograd.grad(whole.square().sum(), leaves)
    for one, other in zip(ours, torch.autograd.grad(sum(part.square().sum() for part in alone), leaves), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_block_attends_with_what_it_is_given() -> None:
    seen = []

    def values(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object) -> torch.Tensor:
        seen.append(mask)
        return value

    Block(16, 2, depth=1, attend=values)(torch.randn(1, 3, 16), mask := BlockCausal(1))
    assert seen == [mask]
