"""Where a move meets a box, against looking at every point of it; and that nobody ever ends within a wall."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa_control.walls import FAR, GAP, Wall, border, covered, first_hit, layout, moved

seeds = st.integers(0, 2**31)
quick = settings(max_examples=30, deadline=None)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def boxes_and_moves(seed: int, rows: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Three boxes each, starts outside of them, and moves of up to 20 pixels."""
    corner, side = 30 * drawn(seed, rows, 3, 2), 1 + 8 * drawn(seed + 1, rows, 3, 2)
    boxes, start, move = (
        torch.cat((corner, corner + side), -1),
        40 * drawn(seed + 2, rows, 2),
        40 * drawn(seed + 3, rows, 2) - 20,
    )
    outside = ~covered(boxes, start[:, None])[:, 0]
    return boxes[outside], start[outside], move[outside]


@quick
@given(seeds)
def test_the_first_hit_is_where_the_first_point_within_a_box_is(seed: int) -> None:
    boxes, start, move = boxes_and_moves(seed)
    share, axis = first_hit(boxes, start, move)
    times = torch.linspace(0, 1, 2001)
    within = covered(boxes, start[:, None] + times[None, :, None] * move[:, None])
    first = torch.where(within.any(1), times[within.int().argmax(1)], 1.0)
    long = (share - first).abs() > 1e-3
    assert (share[long] < first[long]).all(), "the corner of a box may lie between two of the points that were looked at"
    assert long.float().mean() < 0.03
    hit = share < 1
    met = start + share[:, None] * move
    off = (boxes.unflatten(-1, (2, 2)) - met[:, None, None]).abs().amin((1, 2)).gather(1, axis[:, None])[:, 0]
    assert (off[hit] < 1e-3).all(), "the axis is that of the side that was met"


def test_by_hand() -> None:
    boxes = torch.tensor([[[10.0, 0.0, 12.0, 8.0]]]).expand(5, -1, -1)
    start = torch.tensor([[4.0, 4.0], [4.0, 4.0], [11.0, 14.0], [4.0, 9.0], [14.0, 4.0]])
    move = torch.tensor([[12.0, 0.0], [3.0, 0.0], [0.0, -12.0], [12.0, 0.0], [-4.0, 0.0]])
    share, axis = first_hit(boxes, start, move)
    assert share.tolist() == [0.5, 1, 0.5, 1, 0.5] and axis[[0, 2, 4]].tolist() == [0, 1, 0]
    found = moved(boxes, start, move, torch.tensor([2.0, 2.0, 0.0, 0.0, 1.0]))
    expected = torch.tensor([[8.0, 4.0], [7.0, 4.0], [11.0, 8 + GAP], [16.0, 9.0], [13.0, 4.0]])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_who_touches_a_wall_or_stands_in_it_by_rounding_does_not_get_through() -> None:
    within = torch.nextafter(torch.tensor(4.5), torch.tensor(0.0))
    for depth in (torch.tensor(4.5), within, within - 1e-5):
        start = torch.stack((depth, torch.tensor(30.0))).expand(3, -1)
        move = torch.tensor([[-1.0, 0.0], [-0.01, 2.0], [1.0, 0.5]])
        end = moved(border(3, 65, torch.device("cpu")), start, move, torch.full((3,), 0.5))
        assert (end[:2, 0] >= 4.5 + GAP).all() and end[2].tolist() == (start[2] + move[2]).tolist()


@quick
@given(seeds, st.floats(0, 30))
def test_a_move_never_ends_within_a_wall_nor_leads_through_one(seed: int, strength: float) -> None:
    boxes, start, move = boxes_and_moves(seed)
    end = moved(boxes, start, move, strength * drawn(seed + 9, len(start)))
    assert not covered(boxes, end[:, None]).any()
    share, _ = first_hit(boxes, start, move)
    met = start + (share * (1 - 1e-4))[:, None] * move
    assert (first_hit(boxes, met, end - met)[0] > 0.99).all()


@quick
@given(seeds)
def test_what_meets_nothing_is_exact_and_standing_still_stays(seed: int) -> None:
    boxes, start, move = boxes_and_moves(seed)
    clear = first_hit(boxes, start, move)[0] == 1
    assert torch.equal(moved(boxes, start, move, torch.ones(len(start)))[clear], (start + move)[clear])
    assert torch.equal(moved(boxes, start, torch.zeros_like(move), torch.ones(len(start))), start)


@pytest.mark.parametrize("upright", [True, False])
def test_a_wall_has_doors_that_may_be_closed(upright: bool) -> None:
    wall = Wall(torch.tensor([20.0]), torch.tensor([[10.0, 40.0]]), torch.tensor([[False, True]]), upright)
    along = torch.arange(65.0)
    places = torch.stack((torch.full_like(along, 20.0), along) if upright else (along, torch.full_like(along, 20.0)), -1)
    solid = ~((along >= 6) & (along <= 14))
    assert torch.equal(covered(wall.boxes(3, 9), places[None])[0], solid)
    beside = places + (torch.tensor([1.6, 0]) if upright else torch.tensor([0, 1.6]))
    assert not covered(wall.boxes(3, 9), beside[None]).any()
    assert wall.side(beside[None]).all() and not wall.side(places[None] - 0.1).any()


def test_the_border_is_all_outside() -> None:
    at = torch.arange(-3.0, 70.0)
    places = torch.cartesian_prod(at, at)
    inside = ((places > 4.4) & (places < 59.6)).all(-1)
    assert torch.equal(covered(border(1, 65, torch.device("cpu")), places[None])[0], ~inside)
    assert layout([Wall.of(torch.tensor([20.0]), torch.tensor([[10.0]]), True)], 65, 3, 9).shape == (1, 4 + 3, 4)
    assert covered(border(1, 65, torch.device("cpu")), torch.tensor([[[-FAR / 2, 30.0]]])).all()
