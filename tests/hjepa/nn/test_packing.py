"""Token sets of different sizes: chosen, taken, computed on side by side, and their means."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Packed
from hjepa.nn.packing import led, packed, padded, row_keys, set_means, sets, taken
from hjepa.randomness import Key, uniform

GRID = (2, 3)


def drawn(seed: int, rows: int) -> Tensor:
    """(rows, 6): at least one token of each row."""
    chosen = torch.rand(rows, 6, generator=torch.Generator().manual_seed(seed)) < 0.5
    chosen[:, seed % 6] = True
    return chosen


@given(seed=st.integers(0, 1000), batch=st.integers(1, 4), time=st.integers(1, 3))
def test_what_is_chosen_is_what_is_taken(seed: int, batch: int, time: int) -> None:
    chosen = drawn(seed, batch * time)
    tokens = torch.randn(batch, time, 6, 5, generator=torch.Generator().manual_seed(seed))
    at = packed(chosen, GRID, "some")
    assert at.lengths.tolist() == chosen.sum(1).tolist() and at.family == "some"
    assert torch.equal(at.positions[:, 0] * 3 + at.positions[:, 1], at.values[:, 0])
    assert torch.equal(taken(tokens, at).values, tokens.flatten(0, 1)[chosen])


@given(seed=st.integers(0, 1000), rows=st.integers(1, 6))
def test_side_by_side_and_back(seed: int, rows: int) -> None:
    at = packed(drawn(seed, rows), GRID)
    values = torch.randn(len(at.values), 4, generator=torch.Generator().manual_seed(seed))
    beside, mask = padded(replace(at, values=values))
    assert beside.shape == (rows, at.lengths.max(), 4)
    assert torch.equal(beside[mask], values) and not beside[~mask].any()


@given(seed=st.integers(0, 1000), rows=st.integers(1, 6), count=st.integers(1, 3))
def test_each_set_is_led_by_the_same(seed: int, rows: int, count: int) -> None:
    at = packed(drawn(seed, rows), GRID)
    at = replace(at, values=torch.randn(len(at.values), 4, generator=torch.Generator().manual_seed(seed)))
    by = torch.arange(4.0 * count).view(count, 4)
    longer, own = led(at, by)
    assert torch.equal(longer.values[own], at.values) and torch.equal(longer.positions[own], at.positions)
    assert longer.lengths.tolist() == (at.lengths + count).tolist()
    for values, positions in zip(longer.values.split(longer.lengths.tolist()), longer.positions.split(longer.lengths.tolist())):
        assert torch.equal(values[:count], by) and not positions[:count].any()


@given(seed=st.integers(0, 1000), rows=st.integers(1, 6))
def test_means_are_those_of_each_set(seed: int, rows: int) -> None:
    at = packed(drawn(seed, rows), GRID)
    x = torch.randn(len(at.values), generator=torch.Generator().manual_seed(seed), requires_grad=True)
    own = torch.stack([x[sets(at) == number].mean() for number in range(rows)])
    torch.testing.assert_close(set_means(x, at), own)
    set_means(x, at).sum().backward()
    torch.testing.assert_close(x.grad, 1 / at.lengths[sets(at)])


def test_sets_of_one_row_are_taken_from_it() -> None:
    """Several sets may belong to a row, in any order."""
    tokens = torch.arange(12.0).view(2, 1, 6, 1)
    at = Packed(torch.tensor([[0], [5], [1]]), torch.tensor([2, 1]), torch.zeros(3, 2), torch.tensor([1, 1]))
    assert taken(tokens, at).values[:, 0].tolist() == [6, 11, 7]


def test_a_rows_key_is_its_samples_and_its_ticks() -> None:
    key, time = Key.of(0).fold(torch.arange(3)), torch.tensor([[0, 4, 8]]).expand(3, 3)
    words = uniform(row_keys(key, time), "mask").view(3, 3)
    assert len(words.unique()) == 9
    assert torch.equal(uniform(row_keys(Key(key.word[1:2]), time[1:2, 1:]), "mask"), words[1, 1:])
