"""Keyed random numbers: pure functions of a key, vectorised, equal bit for bit on every device.

A number is a hash of where it is used (seed, stream, epoch, sample id or step) and of a counter, so it depends neither on the
batch size, nor on the worker, nor on what was drawn before: nothing has to be stored to resume.
The hash is the finaliser of splitmix64 (Steele, Lea, Flood 2014), in wrapping int64.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _mixed_number(x: int) -> int:
    """The same of one number, without a tensor: what is asked for at every step should cost nothing."""
    x %= 1 << 64
    x = ((x ^ (x >> 30)) * _FIRST) % (1 << 64)
    x = ((x ^ (x >> 27)) * _SECOND) % (1 << 64)
    return x ^ (x >> 31)


def _word(*parts: int | str) -> int:
    """The word of a key without tensors among its parts, signed."""
    word = 0
    for part in parts:
        word = _mixed_number(_mixed_number(word + _GOLDEN) + _number(part))
    return _number(word)


def _number(part: int | str) -> int:
    """A signed 64-bit integer for a part of a key."""
    if isinstance(part, str):
        return int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little", signed=True)
    return (part + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True)
class Key:
    """Where randomness comes from: one word `()` for a step, or one for each sample `(B,)`."""

    word: Tensor

    @staticmethod
    def of(*parts: int | str, device: torch.device | str = "cpu") -> Key:
        """The key that these parts stand for."""
        return Key(torch.tensor(_word(*parts), dtype=torch.int64, device=device))

    def on(self, device: torch.device | str) -> Key:
        """The same key on another device."""
        return Key(self.word.to(device))

    def fold(self, *parts: int | str | Tensor) -> Key:
        """A key of its own for each different sequence of parts; a tensor (B,) gives one key a sample."""
        word = self.word
        for part in parts:
            number = part.to(word.device) if isinstance(part, Tensor) else _number(part)
            word = _mixed(_mixed(word + _GOLDEN) + number)
        return Key(word)

    def fold_rows(self, numbers: Tensor) -> Key:
        """A key of its own for each different row of numbers (B, K), by their bits in float32."""
        return self.fold(*numbers.float().contiguous().view(torch.int32).long().unbind(dim=1))


def bits(key: Key, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
    """(*key, *shape) int64, each all of 64 random bits."""
    word = key.fold(stream).word
    counter = torch.arange(1, math.prod(shape) + 1, device=word.device)
    return _mixed(word[..., None] + counter * _GOLDEN).reshape((*word.shape, *shape))


def uniform(key: Key, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
    """(*key, *shape) float32 in [0, 1), multiples of 2^-24."""
    return _shifted(bits(key, stream, shape), 40).to(torch.float32) * 2.0**-24


def normal(key: Key, stream: str, shape: tuple[int, ...] = ()) -> Tensor:
    """(*key, *shape) float32 from N(0, 1), by the inverse of its distribution function."""
    middle = _shifted(bits(key, stream, shape), 40).to(torch.float64) * 2.0**-24 + 2.0**-25
    return torch.special.ndtri(middle).to(torch.float32)


def integers(key: Key, stream: str, low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """(*key, *shape) int64 in [low, high)."""
    if high <= low:
        raise ValueError(f"integers in [{low}, {high}): there are none")
    return low + _shifted(bits(key, stream, shape), 1) % (high - low)


def permuted(index: Tensor, count: int, key: Key) -> Tensor:
    """Where the shuffle that `key` stands for puts each of `index` (R,) within [0, count).

    A bijection for each key, by Feistel rounds on the next power of four, walked until inside: any position of any epoch is
    found without the ones before it. `key` may hold one word for each index (batches that cross the end of an epoch).
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    rounds = 8 if half < 8 else 4  # halves of few bits mix little in a round
    mask = (1 << half) - 1
    word = key.word.expand(index.shape)

    def shuffled(x: Tensor) -> Tensor:
        left, right = x >> half, x & mask
        for turn in range(rounds):
            left, right = right, left ^ (_mixed(_mixed(word + _number((turn + 1) * _GOLDEN)) + right) & mask)
        return (left << half) | right

    result = shuffled(index)
    while (outside := result >= count).any():
        result = torch.where(outside, shuffled(result), result)
    return result


def seed_default_generators(*parts: int | str) -> None:
    """Seeds torch, numpy and random, so that `nn.Dropout` and other people's code reproduce too."""
    number = _word(*parts) % (1 << 63)
    torch.manual_seed(number)
    np.random.seed(number % (1 << 32))  # noqa: NPY002
    random.seed(number)
