"""The predictor of masked tokens: what it sees, what it does not, and in what order nothing matters."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Packed, Spec
from hjepa.nn import attend, grid_positions
from hjepa.nn.packing import sets
from hjepa_attention.sdpa import SDPA
from hjepa_masked.mask_tokens import MaskTokens

GRID = (4, 5)
SPEC = Spec(width=6, grid=GRID)
KINDS: dict[str, dict[str, Any]] = {
    "copied": {},
    "rotary": {"rotary": True},
    "shared": {"shared_context": True},
    "shared rotary": {"shared_context": True, "rotary": True},
}
kinds = pytest.mark.parametrize("kind", KINDS)
SEEDS = st.integers(0, 2**31)


def made(spec: Spec = SPEC, families: tuple[str, ...] = ("block",), **options: Any) -> MaskTokens:
    torch.manual_seed(0)
    predictor = MaskTokens(spec, families, **{"width": 16, "depth": 2, "heads": 2, "attention": SDPA, **options})
    for token in predictor.tokens.values():
        torch.nn.init.normal_(token)
    return predictor


def drawn(rows: list[int], seed: int, width: int = 0, least: int = 1) -> Packed:
    """Sets of tokens, each of the row that is given; with features where `width` says so."""
    draw = torch.Generator().manual_seed(seed)
    tokens = math.prod(GRID)
    lengths = torch.randint(least, 6, (len(rows),), generator=draw)
    index = torch.cat([torch.randperm(tokens, generator=draw)[: int(length)] for length in lengths])
    values = torch.randn(len(index), width, generator=draw) if width else index[:, None]
    return Packed(values, lengths, grid_positions(GRID)[index], torch.tensor(rows), "block")


def within(of: Packed, key: Tensor) -> Packed:
    """The tokens of each set in the order of `key` (M,)."""
    order = (sets(of) + key).argsort()
    return replace(of, values=of.values[order], positions=of.positions[order])


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@kinds
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 3), each=st.integers(1, 3), seed=SEEDS)
def test_the_order_of_tokens_and_of_sets_does_not_matter(kind: str, rows: int, each: int, seed: int) -> None:
    """I9, and the same of what is asked for."""
    predictor = made(**KINDS[kind])
    context, query = drawn(list(range(rows)), seed, 6), drawn(list(range(rows)) * each, seed + 1)
    told = predictor(context, query)
    assert told.values.shape == (len(query.values), 6)
    assert torch.equal(told.lengths, query.lengths) and torch.equal(told.row, query.row)
    draw = torch.Generator().manual_seed(seed)
    close(predictor(within(context, torch.rand(len(context.values), generator=draw) * 0.9), query).values, told.values)
    key = torch.rand(len(query.values), generator=draw) * 0.9
    close(predictor(context, within(query, key)).values, told.values[(sets(query) + key).argsort()])
    backwards = torch.arange(len(query.lengths)).flip(0)
    turned = drawn_again(query, backwards)
    parts = told.values.split(query.lengths.tolist())
    close(predictor(context, turned).values, torch.cat([parts[int(number)] for number in backwards]))


def drawn_again(query: Packed, order: Tensor) -> Packed:
    """The sets in another order."""
    values, positions = (x.split(query.lengths.tolist()) for x in (query.values, query.positions))
    chosen = [int(number) for number in order]
    parts = torch.cat([values[n] for n in chosen]), query.lengths[order], torch.cat([positions[n] for n in chosen])
    return Packed(*parts, query.row[order], query.family)


@kinds
def test_sets_see_their_own_context_and_no_other_set(kind: str) -> None:
    predictor = made(**KINDS[kind])
    context, query = drawn([0, 1, 2], 1, 6, least=2), drawn([0, 1, 2, 0, 1, 2], 2, least=2)
    whole = predictor(context, query).values.split(query.lengths.tolist())
    for number in range(6):
        alone = predictor(context, drawn_again(query, torch.tensor([number])))
        close(alone.values, whole[number])
    noise = torch.where(sets(context)[:, None] == 1, torch.randn(context.values.shape), 0.0)
    changed = predictor(replace(context, values=context.values + noise), query).values.split(query.lengths.tolist())
    for number, row in enumerate(query.row.tolist()):
        assert torch.allclose(whole[number], changed[number], atol=1e-6) == (row != 1)


@kinds
def test_places_of_a_set_see_one_another(kind: str) -> None:
    predictor = made(**KINDS[kind])
    context, query = drawn([0], 1, 6, least=3), drawn([0], 2, least=3)
    moved = replace(query, positions=torch.cat((query.positions[:-1], (query.positions[-1:] + 1) % 4)))
    assert not torch.allclose(predictor(context, query).values[:-1], predictor(context, moved).values[:-1], atol=1e-4)


def test_the_context_is_told_what_is_asked_for_or_is_not() -> None:
    """With a copy, the context sees the places in each block; shared, it is computed without them, and the output is another."""
    context, query = drawn([0], 1, 6, least=3), drawn([0, 0], 2, least=3)
    copied, shared = made(), made(shared_context=True)
    shared.load_state_dict(copied.state_dict())
    assert not torch.allclose(copied(context, query).values, shared(context, query).values, atol=1e-4)
    seen: list[Tensor] = []
    for predictor in (copied, shared):
        predictor.blocks[0].register_forward_hook(lambda block, given, x: seen.append(x[0]))
        for asked in (query, drawn([0, 0], 9, least=3)):
            predictor(context, asked)
    count = len(context.values)
    assert not torch.allclose(seen[0][:count], seen[1][:count], atol=1e-4)
    assert torch.equal(seen[2][:count], seen[3][:count])


@pytest.mark.parametrize("kind", ["shared", "shared rotary"])
def test_a_shared_context_is_attention_with_a_dense_mask(kind: str) -> None:
    """Each query sees what the mask of the definition says: the context itself, a set of places the context of its row and itself."""
    predictor = made(**KINDS[kind])
    context, query = drawn([0, 1], 3, 6), drawn([0, 1, 1], 4)
    row = torch.cat((sets(context), query.row[sets(query)]))
    number = torch.cat((-1 - sets(context), sets(query)))
    of_context = torch.arange(len(row)) < len(context.values)
    dense = (row[:, None] == row) & (of_context[None] | (number[:, None] == number))
    told = predictor(context, query).values
    for block in predictor.blocks:
        block.attention.attend = lambda q, k, v, mask: attend(q, k, v, dense[-q.shape[2] :])  # the places are last
    close(predictor(context, query).values, told)


def test_one_set_a_row_is_attention_within_context_and_set() -> None:
    """The copied form beside a loop over sets, each alone and without packing."""
    predictor = made()
    context, query = drawn([0, 1], 5, 6), drawn([1, 0, 1], 6)
    told = predictor(context, query).values.split(query.lengths.tolist())
    seen, asked = context.values.split(context.lengths.tolist()), query.positions.split(query.lengths.tolist())
    places = context.positions.split(context.lengths.tolist())
    for number, row in enumerate(query.row.tolist()):
        one = Packed(seen[row], torch.tensor([len(seen[row])]), places[row], torch.tensor([0]))
        other = Packed(asked[number][:, :1], torch.tensor([len(asked[number])]), asked[number], torch.tensor([0]), "block")
        close(predictor(one, other).values, told[number])


@kinds
def test_a_family_has_its_own_token_and_places_matter(kind: str) -> None:
    predictor = made(families=("short", "long"), **KINDS[kind])
    context, query = drawn([0], 1, 6), drawn([0], 2)
    short, long = (predictor(context, replace(query, family=family)).values for family in ("short", "long"))
    assert not torch.allclose(short, long, atol=1e-4)
    moved = replace(query, positions=(query.positions + 1) % 4, family="short")
    assert not torch.allclose(predictor(context, moved).values, short, atol=1e-4)
    predictor(context, replace(query, family="long")).values.sum().backward()
    assert predictor.tokens["long"].grad.abs().sum() > 0 and predictor.tokens["short"].grad is None


def test_a_condition_and_a_z_belong_to_rows() -> None:
    predictor = made(replace(SPEC, condition=3, latent=2))
    context, query = drawn([0, 1], 1, 6), drawn([0, 1, 1], 2)
    condition, z = torch.randn(2, 3), torch.randn(2, 2)
    told = predictor(context, query, condition, z).values.split(query.lengths.tolist())
    for other in ({"condition": condition * torch.tensor([[1.0], [2.0]])}, {"z": z * torch.tensor([[1.0], [2.0]])}):
        changed = predictor(context, query, **{"condition": condition, "z": z, **other}).values.split(query.lengths.tolist())
        assert [torch.allclose(one, two) for one, two in zip(told, changed, strict=True)] == [True, False, False]


@kinds
def test_everything_is_finite(kind: str) -> None:
    """P14: a single token, zeros, an empty set, bfloat16."""
    predictor = made(**KINDS[kind])
    context = Packed(torch.zeros(1, 6), torch.tensor([1, 0]), grid_positions(GRID)[:1], torch.arange(2))
    query = Packed(torch.tensor([[3]]), torch.tensor([0, 1]), grid_positions(GRID)[3:4], torch.arange(2), "block")
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            told = predictor(context, query).values
        assert told.isfinite().all() and told.shape == (1, 6)


@pytest.mark.parametrize(
    "options", [{"width": 15, "heads": 3}, {"width": 16, "heads": 3}, {"width": 18, "heads": 6, "rotary": True}]
)
def test_a_width_that_heads_cannot_share_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="multiple"):
        made(**options)


def test_states_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="have none"):
        made(Spec(maps=((1, 2, 2),)))
