"""Words of which each is so many after the one before; phrases differ in length."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from hjepa.contracts import Batch, Count, Spec
from hjepa.randomness import Key, integers


class Phrases:
    """`text (B,N)` of word numbers, `text_valid (B,N)`, `topic (B,4)`: how far apart the words are, one of four."""

    def __init__(self, seed: int, *, words: Count = 12, vocabulary: Count = 16, samples: Count = 32) -> None:
        self.seed, self.words, self.vocabulary, self.samples, self.name = seed, words, vocabulary, samples, "train"
        self.streams = {"text": Spec(width=1, grid=(words,), vocabulary=vocabulary), "topic": Spec(width=4)}

    def split(self, name: str) -> Phrases:
        other = copy.copy(self)
        other.name = name
        return other

    def __len__(self) -> int:
        return self.samples

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        key = Key.of(self.seed, "phrases", self.name, device=device).fold(ids)
        place, apart = torch.arange(self.words, device=device), integers(key, "apart", 0, 4, (1,))
        text = (integers(key, "first", 0, self.vocabulary, (1,)) + (apart + 1) * place) % self.vocabulary
        valid = place < integers(key, "length", self.words - 4, self.words + 1, (1,))
        topic = torch.nn.functional.one_hot(apart[:, 0], 4).float()
        return {"text": text, "text_valid": valid, "topic": topic}
