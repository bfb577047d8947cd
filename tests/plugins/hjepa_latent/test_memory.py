"""What was inferred lately, newest first, is what is drawn."""

from __future__ import annotations

import torch

from hjepa.randomness import Key
from hjepa_latent.memory import Memory


def test_the_newest_are_kept_and_nothing_at_rest() -> None:
    memory = Memory(4, 1)
    memory.keep(torch.tensor([[[1.0], [2.0]]]))
    assert memory.seen[:2, 0].tolist() == [1, 2]
    memory.eval().keep(torch.full((9, 1), 7.0))
    memory.train().keep(torch.tensor([[3.0], [4.0], [5.0]]))
    assert memory.seen[:, 0].tolist() == [3, 4, 5, 1]
    memory.keep(torch.arange(10.0)[:, None])
    assert memory.seen[:, 0].tolist() == [0, 1, 2, 3]


def test_only_what_was_kept_is_drawn_evenly() -> None:
    memory, keys = Memory(100, 1), Key.of(0).fold(torch.arange(20))
    assert not memory.draw(5, keys).any()
    memory.keep(torch.tensor([[1.0], [2.0], [3.0]]))
    drawn = memory.draw(50, keys)
    assert drawn.shape == (20, 50, 1)
    shares = torch.bincount(drawn.flatten().long(), minlength=4) / drawn.numel()
    assert shares[0] == 0 and ((shares[1:] - 1 / 3).abs() < 0.06).all()
