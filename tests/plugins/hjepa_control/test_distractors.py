"""Distractors go on their own: within the border, at the gait of a dot, each by its own key."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa.randomness import Key
from hjepa_control.distractors import HIGH, LOW, Distractors, walked
from hjepa_control.wander import LONGEST, SHORTEST


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(1, 60))
def test_they_stay_within_the_border_and_no_step_is_too_long(seed: int, count: int, steps: int) -> None:
    places = walked(Key.of(seed).fold(torch.arange(9)), count, steps)
    assert places.shape == (9, steps, count, 2)
    assert ((places >= LOW) & (places <= HIGH)).all()
    lengths = places.diff(dim=1).norm(dim=-1)
    assert (lengths < LONGEST + 1e-3).all()
    inside = ((places > LOW + LONGEST) & (places < HIGH - LONGEST)).all(-1)[:, :-1]
    assert (lengths[inside] > SHORTEST - 1e-3).all()


def test_a_step_follows_from_the_key_and_what_was_before_alone() -> None:
    key = Key.of(1).fold(torch.arange(40))
    places = walked(key, 3, 30)
    assert torch.equal(places[7:9, :12], walked(Key(key.word[7:9]), 3, 12))
    now = Distractors.begun(key, 3)
    for step in range(29):
        assert torch.equal(now.places, places[:, step])
        now = now.moved(key.fold(step))
    assert torch.equal(now.places, places[:, 29])


def test_they_are_everywhere_and_turn_back_at_the_border() -> None:
    places = walked(Key.of(2).fold(torch.arange(300)), 2, 200)
    for part in (places[:, 0], places[:, -1]):
        assert torch.allclose(part.mean((0, 1)), torch.tensor((LOW + HIGH) / 2), atol=2.0)
        assert torch.allclose(part.std((0, 1)), torch.tensor((HIGH - LOW) / 12**0.5), atol=1.0)
    ways = places.diff(dim=1)
    straight = torch.nn.functional.cosine_similarity(ways[:, 1:], ways[:, :-1], dim=-1)
    assert straight.mean() > 0.8
    at_border = (places[:, 1:-1] < LOW + 0.5).any(-1)
    assert ((ways[:, 1:] * ways[:, :-1])[at_border] < 0).any(-1).float().mean() > 0.4


def test_whose_they_are_can_be_chosen_world_by_world() -> None:
    one, other = (Distractors.begun(Key.of(seed).fold(torch.arange(3)), 2) for seed in (1, 2))
    which = torch.tensor([True, False, True])
    both = one.where(which, other)
    assert torch.equal(both.places[which], one.places[which]) and torch.equal(both.headings[~which], other.headings[~which])
