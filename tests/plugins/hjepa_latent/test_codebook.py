"""Codes, and how often they were chosen."""

from __future__ import annotations

import pytest
import torch

from hjepa.randomness import Key
from hjepa_latent.codebook import KEPT, Codebook


def book() -> Codebook:
    made = Codebook(3, 2)
    made.codes.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    return made


def test_the_nearest_code() -> None:
    z = torch.tensor([[[0.1, 0.1], [0.9, -0.3]], [[0.0, 1.5], [0.4, 0.0]]])
    assert book().nearest(z).tolist() == [[0, 1], [2, 0]]


def test_usage_follows_what_is_chosen_and_rests_at_rest() -> None:
    made = book()
    for part in ([[0, 0]], [[0, 1]]):
        made.note(torch.tensor(part))
    made.after_step(0)
    assert made.usage.tolist() == pytest.approx([KEPT / 3 + 0.0075, KEPT / 3 + 0.0025, KEPT / 3])
    before = made.usage.clone()
    made.after_step(1)
    made.eval().note(torch.tensor([2, 2]))
    made.after_step(2)
    assert torch.equal(made.usage, before)


def test_codes_are_drawn_as_often_as_they_were_chosen() -> None:
    made = book()
    made.usage.copy_(torch.tensor([0.7, 0.0, 0.3]))
    drawn = made.draw(4000, Key.of(0))
    index = made.nearest(drawn)
    assert (index == 1).sum() == 0 and (index == 0).float().mean() == pytest.approx(0.7, abs=0.03)
    made.usage.copy_(torch.tensor([0.0, 0.0, 0.9999]))
    assert (made.nearest(made.draw(4000, Key.of(1))) == 2).all(), "shares that miss 1 by rounding"


def test_perplexity_is_how_many_codes_even_usage_would_need() -> None:
    made = book()
    one, even = made.codes[:1].expand(6, -1), made.codes.repeat(2, 1)
    assert made.logs(one)["perplexity"] == pytest.approx(1) and made.logs(one)["used"] == 1
    assert made.logs(even)["perplexity"] == pytest.approx(3) and made.logs(even)["used"] == 3
    uneven = made.codes[[0, 0, 0, 1]]
    assert made.logs(uneven)["perplexity"] == pytest.approx(
        torch.tensor([0.75, 0.25]).log().mul(torch.tensor([-0.75, -0.25])).sum().exp()
    )
