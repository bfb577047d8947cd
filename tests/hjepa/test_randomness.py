"""Keyed randomness: uniform, independent of batches, the same for ever."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.randomness import Key, bits, integers, normal, permuted, seed_default_generators, uniform

WORDS = st.integers(-(2**63), 2**63 - 1)


def surprise(counts: Tensor) -> float:
    """How many standard deviations a chi-square statistic of equally likely cells lies above what is expected of it."""
    expected = counts.sum() / counts.numel()
    freedom = counts.numel() - 1
    return float(((counts - expected).square() / expected).sum() - freedom) / (2 * freedom) ** 0.5


def counted(index: Tensor, cells: int) -> Tensor:
    return torch.bincount(index.flatten(), minlength=cells).double()


# --- distribution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["one key", "key a sample", "key a step", "key a stream"])
def test_uniform_numbers_are_uniform(how: str):
    count = 1 << 16
    key = Key.of(7)
    drawn = {
        "one key": lambda: uniform(key, "s", (count,)),
        "key a sample": lambda: uniform(key.fold(torch.arange(count)), "s"),
        "key a step": lambda: torch.stack([uniform(Key.of(7, "step", step), "s", (1,)) for step in range(4096)]),
        "key a stream": lambda: torch.stack([uniform(key, f"s{stream}", (1,)) for stream in range(4096)]),
    }[how]()
    assert 0 <= float(drawn.min()) <= float(drawn.max()) < 1
    assert abs(surprise(counted((drawn * 64).long(), 64))) < 5


def test_neighbours_in_a_batch_and_in_a_row_say_nothing_of_each_other():
    drawn = (uniform(Key.of(3).fold(torch.arange(4096)), "s", (16,)) * 16).long()
    assert abs(surprise(counted(drawn[:-1] * 16 + drawn[1:], 256))) < 5
    assert abs(surprise(counted(drawn[:, :-1] * 16 + drawn[:, 1:], 256))) < 5


def test_every_bit_is_a_fair_coin():
    drawn = bits(Key.of(11), "s", (1 << 14,))
    share = torch.stack([((drawn >> place) & 1).double().mean() for place in range(64)])
    assert float((share - 0.5).abs().max()) < 5 * 0.5 / 128


def test_normal_numbers_are_normal():
    drawn = normal(Key.of(5), "s", (1 << 16,)).double()
    assert drawn.isfinite().all()
    cell = (torch.special.ndtr(drawn) * 64).long().clamp(max=63)
    assert abs(surprise(counted(cell, 64))) < 5
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)


def test_integers_are_uniform_within_their_bounds():
    drawn = integers(Key.of(5), "s", -3, 7, (1 << 16,))
    assert int(drawn.min()) == -3
    assert int(drawn.max()) == 6
    assert abs(surprise(counted(drawn + 3, 10))) < 5
    with pytest.raises(ValueError, match="there are none"):
        integers(Key.of(5), "s", 3, 3)


# --- keys -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(ids=st.lists(WORDS, min_size=1, max_size=12), seed=WORDS, epoch=st.integers(0, 9), pick=st.integers(0, 2**30))
def test_a_sample_s_numbers_depend_on_nothing_else_in_the_batch(ids: list[int], seed: int, epoch: int, pick: int):
    """The vectorised key equals the scalar one, whatever the order, size and rest of the batch."""
    together = Key.of(seed, "stream").fold(epoch, torch.tensor(ids))
    place = pick % len(ids)
    alone = Key.of(seed, "stream").fold(epoch, ids[place])
    for draw in (bits, uniform, normal):
        assert torch.equal(draw(together, "x", (2, 3))[place], draw(alone, "x", (2, 3)))
    assert torch.equal(integers(together, "x", 0, 10, (4,))[place], integers(alone, "x", 0, 10, (4,)))


@settings(deadline=None, max_examples=30)
@given(seed=WORDS, other=WORDS)
def test_different_keys_give_different_numbers(seed: int, other: int):
    words = [Key.of(seed), Key.of(seed, 0), Key.of(0, seed), Key.of(seed, "0"), Key.of(seed, "a", "b"), Key.of(seed, "b", "a")]
    words += [Key.of(seed, "ab"), Key.of(seed).fold("a").fold("b", "c")]
    seen = {int(key.word) for key in words}
    assert len(seen) == len(words) - (seed == 0)
    assert (seed == other) == bool(Key.of(seed).word == Key.of(other).word)


def test_folding_is_the_same_in_one_go_or_in_several():
    assert Key.of(1, "a", 2).word == Key.of(1).fold("a").fold(2).word
    assert torch.equal(Key.of(1).fold(torch.tensor([2, 3])).word, torch.stack([Key.of(1, 2).word, Key.of(1, 3).word]))


def test_a_shape_is_only_how_the_numbers_are_laid():
    key = Key.of(1).fold(torch.arange(3))
    assert torch.equal(bits(key, "s", (2, 3)).flatten(1), bits(key, "s", (6,)))
    assert torch.equal(bits(key, "s", (6,))[:, :4], bits(key, "s", (4,)))
    assert torch.equal(bits(key, "s"), bits(key, "s", (1,))[:, 0])
    assert bits(key, "s", (0,)).shape == (3, 0)


# --- shuffling --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 400), seed=WORDS)
def test_a_shuffle_puts_each_index_somewhere_else_and_none_twice(count: int, seed: int):
    places = permuted(torch.arange(count), count, Key.of(seed))
    assert sorted(places.tolist()) == list(range(count))


@pytest.mark.parametrize("count", [2**16 - 1, 2**16, 2**16 + 1])
def test_a_shuffle_of_many_is_one_too(count: int):
    places = permuted(torch.arange(count), count, Key.of(1))
    assert int(counted(places, count).max()) == 1
    assert float(torch.corrcoef(torch.stack([places.double(), torch.arange(count).double()]))[0, 1]) == pytest.approx(
        0, abs=0.02
    )


def test_shuffles_of_different_keys_are_different_and_all_places_are_as_likely():
    keys = Key.of(4).fold(torch.arange(8000))
    first = permuted(torch.zeros(8000, dtype=torch.int64), 200, keys)
    second = permuted(torch.ones(8000, dtype=torch.int64), 200, keys)
    assert abs(surprise(counted(first, 200))) < 5
    assert abs(surprise(counted((first - second) % 200, 200)[1:])) < 5


@pytest.mark.parametrize("count", [16, 64])
def test_neighbours_of_a_small_set_end_up_at_any_distance(count: int):
    keys = Key.of(1).fold(torch.arange(200_000))
    first, second = (permuted(torch.full((200_000,), index), count, keys) for index in (0, 1))
    often = counted((second - first) % count, count)[1:].double() * (count - 1) / 200_000
    assert float(often.max()) < 1.1


def test_each_index_can_have_a_key_of_its_own():
    """Batches that cross the end of an epoch."""
    keys = Key.of(4).fold(torch.tensor([0, 0, 1, 1]))
    together = permuted(torch.tensor([8, 9, 0, 1]), 10, keys)
    assert together[:2].tolist() == permuted(torch.tensor([8, 9]), 10, Key.of(4, 0)).tolist()
    assert together[2:].tolist() == permuted(torch.tensor([0, 1]), 10, Key.of(4, 1)).tolist()


# --- for ever ---------------------------------------------------------------------------------------------------------


WORD = [576722834071743318, -2780400300129874638, 7022071065626985716]
BITS = [
    [1426920360472072, -4609189467632210854],
    [1803736193841533818, -7771577237435598444],
    [-4235187544232905912, -33478335434388410],
]
UNIFORM = [
    [7.730722427368164e-05, 0.7501353025436401],
    [0.09778070449829102, 0.578701913356781],
    [0.7704100012779236, 0.9981850981712341],
]
NORMAL = [[-3.7834425, 0.6749157], [-1.294301, 0.1985738], [0.7401979, 2.9086659]]
INTEGERS = [[36, 381], [909, 586], [852, 603]]
PERMUTED = [2, 9, 1, 0, 7, 4, 3, 5, 8, 6]


def golden(device: str) -> None:
    key = Key.of(42, "stream", device=device).fold(torch.tensor([0, 1, -1], device=device))
    assert key.word.tolist() == WORD
    assert bits(key, "x", (2,)).tolist() == BITS
    assert uniform(key, "x", (2,)).tolist() == UNIFORM
    assert normal(key, "x", (2,)).flatten().tolist() == pytest.approx(sum(NORMAL, []), rel=1e-6)
    assert integers(key, "x", 0, 1000, (2,)).tolist() == INTEGERS
    assert permuted(torch.arange(10, device=device), 10, Key.of(42, device=device)).tolist() == PERMUTED


def splitmix(x: int) -> int:
    """The finaliser of splitmix64, in whole numbers as the paper has it."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@settings(deadline=None, max_examples=50)
@given(seed=WORDS, part=WORDS)
def test_the_hash_is_splitmix64(seed: int, part: int):
    golden_ratio = 0x9E3779B97F4A7C15
    word = 0
    for number in (seed, part):
        word = splitmix((splitmix((word + golden_ratio) % 2**64) + number) % 2**64)
    key = Key.of(seed, part)
    assert int(key.word) % 2**64 == word
    stream = int(key.fold("s").word) % 2**64
    assert [number % 2**64 for number in bits(key, "s", (3,)).tolist()] == [
        splitmix((stream + step * golden_ratio) % 2**64) for step in (1, 2, 3)
    ]


def test_the_numbers_never_change():
    """Golden values: a checkpoint of today must find the same masks, crops and orders in ten years, on any device."""
    golden("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_numbers_are_the_same_on_a_gpu():
    golden("cuda")
    key = Key.of(1).fold(torch.arange(100))
    assert torch.equal(bits(key, "s", (100,)), bits(key.on("cuda"), "s", (100,)).cpu())
    assert torch.equal(uniform(key, "s", (100,)), uniform(key.on("cuda"), "s", (100,)).cpu())


def test_other_people_s_generators_are_seeded_too():
    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    seed_default_generators(1, "step", 2)
    first = drawn()
    assert drawn() != first
    seed_default_generators(1, "step", 2)
    assert drawn() == first
    seed_default_generators(1, "step", 3)
    assert all(one != other for one, other in zip(drawn(), first, strict=True))


def test_each_row_of_numbers_has_a_key_of_its_own_whatever_stands_beside_it():
    rows = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [1.0, -2.0]])
    words = Key.of(5).fold_rows(rows).word
    assert words[0] == words[2] and len(words.unique()) == 3
    assert torch.equal(Key.of(5).fold_rows(rows[1:]).word, words[1:])
