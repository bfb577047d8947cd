"""Chunks of the training data: the newest are kept, drawn from each batch, and nothing else moves them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import ActionSpace, Spec
from hjepa_forecast.anchors import TURNOVER, Anchors, width_of_one

ANY = ActionSpace(torch.full((3,), -7.0), torch.full((3,), 7.0))


def batch(step: int, rows: int = 20, width: int = 3) -> Tensor:
    """(4, rows / 4, width): each number says which step it is of."""
    return step + torch.rand(rows, width, generator=torch.Generator().manual_seed(step)).view(4, -1, width)


def same(x: Tensor) -> Tensor:
    return x


def filled(length: int, steps: int, start: Any = None) -> Anchors:
    anchors = Anchors(length, 3)
    if start is not None:
        anchors.load_state_dict(start.state_dict())
    for step in range(0 if start is None else int(start.seen) // -(-length // TURNOVER), steps):
        anchors.keep(batch(step))
    return anchors


@given(st.integers(1, 70), st.integers(0, 40))
def test_anchors_are_the_newest_chunks_of_data(length: int, steps: int) -> None:
    anchors, some = filled(length, steps), -(-length // TURNOVER)
    found = anchors.space(same, ANY)
    if not steps:
        assert found is ANY
        return
    assert found.anchors is not None and len(found.anchors) == min(length, steps * some)
    data = torch.cat([batch(step).flatten(0, 1) for step in range(steps)])
    assert (found.anchors[:, None] == data).all(-1).any(-1).all()
    assert found.anchors.floor().min() >= steps - 1 - -(-length // some)
    assert torch.equal(found.low, found.anchors.amin(0)) and torch.equal(found.high, found.anchors.amax(0))


@given(st.integers(1, 40), st.integers(0, 10), st.integers(0, 10))
def test_they_go_on_from_what_was_saved(length: int, before: int, after: int) -> None:
    """What is drawn knows only how many were kept: the resumed ones are the same, bit for bit."""
    whole, resumed = filled(length, before + after), filled(length, before + after, filled(length, before))
    assert torch.equal(whole.chunks, resumed.chunks) and torch.equal(whole.seen, resumed.seen)


def test_no_sample_and_no_step_of_it_is_preferred() -> None:
    anchors = Anchors(64, 1)
    numbers, found = torch.arange(20.0).view(4, 5, 1), torch.zeros(20)
    for step in range(1, 801):
        anchors.keep(numbers)
        if step % TURNOVER == 0:
            found += torch.bincount(anchors.chunks[:, 0].long(), minlength=20)
    share = found / found.sum()
    assert (share > 0.035).all() and (share < 0.065).all()


def test_a_small_batch_is_kept_whole_and_once() -> None:
    anchors, rows = Anchors(160, 3), batch(0, rows=4)
    anchors.keep(rows)
    assert anchors.seen == 4 and torch.equal(anchors.chunks[:4].sort(0).values, rows.flatten(0, 1).sort(0).values)


def test_nothing_is_kept_at_rest_of_nothing_and_where_there_is_no_room() -> None:
    anchors = filled(8, 3)
    before = anchors.chunks.clone()
    anchors.keep(torch.zeros(4, 0, 3))
    anchors.eval().keep(batch(9))
    assert torch.equal(anchors.chunks, before) and anchors.seen == 3
    none = filled(0, 3)
    assert none.space(same, ANY) is ANY


def test_what_is_kept_has_no_gradient() -> None:
    anchors, chunks = Anchors(8, 3), batch(0).requires_grad_()
    anchors.keep(2 * chunks)
    assert not anchors.chunks.requires_grad and not anchors.space(lambda x: x * chunks.sum(), ANY).low.requires_grad


def test_actions_that_are_not_there_cannot_be_joined() -> None:
    assert width_of_one(Spec(actions=6, joined=3), "sum") == 2
    with pytest.raises(
        ValueError, match="sum makes one action of several, and what is read has none; leave `macro_action` out"
    ):
        width_of_one(Spec(width=3), "sum")
