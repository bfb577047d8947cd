"""Every world of rooms: walls hold, doors lead through, and what is seen is where the dot is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.errors import Mistake
from hjepa.randomness import Key
from hjepa_control.distractors import walked
from hjepa_control.four_rooms import FourRooms
from hjepa_control.rooms import DOT, FASTEST, MARGIN, NEAR, OPENING, Rooms
from hjepa_control.serial_rooms import SerialRooms
from hjepa_control.two_rooms import TwoRooms
from hjepa_control.walls import covered, cut, moved

WORLDS = [
    *(TwoRooms(0), SerialRooms(0), SerialRooms(0, rooms=4)),
    *(FourRooms(0), FourRooms(0, closed=1.0, rebound=2.0), FourRooms(0, distractors=3)),
]
NAMES = [f"{type(rooms).__name__} {len(rooms.numbers)} {rooms.rebound} {rooms.distractors}" for rooms in WORLDS]
worlds = pytest.mark.parametrize("rooms", WORLDS, ids=NAMES)
quick = settings(max_examples=8, deadline=None)


def keyed(seed: int, count: int = 64) -> Key:
    return Key.of(seed).fold(torch.arange(count))


def pushed(seed: int, step: int, count: int = 64) -> Tensor:
    """Actions, of which some are longer than any step."""
    return 8 * torch.rand(count, 2, generator=torch.Generator().manual_seed(1000 * seed + step)) - 4


@worlds
@quick
@given(st.integers(0, 1000))
def test_nobody_is_ever_within_a_wall_and_rooms_are_left_through_doors_alone(rooms: Rooms, seed: int) -> None:
    key = keyed(seed)
    world = rooms.world(rooms.drawn(key))
    place = rooms.free(world, key, "start")
    for step in range(40):
        later = rooms.moved(world, place, pushed(seed, step), key.fold(step))
        assert not covered(world.boxes, later[:, None]).any()
        assert ((later > 4.5) & (later < 59.5)).all()
        for wall in world.walls:
            through = wall.side(place) != wall.side(later)
            across, along = (0, 1) if wall.upright else (1, 0)
            share = (wall.at - place[:, across]) / (later - place)[:, across]
            at = place[:, along] + share * (later - place)[:, along]
            within = ((at[:, None] - wall.doors).abs() < OPENING / 2) & ~wall.closed
            assert within.any(1)[through].all()
        place = later


@worlds
def test_steps_are_exact_where_nothing_is_met_and_cut_to_the_fastest(rooms: Rooms) -> None:
    key = keyed(1, 400)
    world = rooms.world(rooms.drawn(key))
    place = rooms.free(world, key, "start")
    assert torch.equal(rooms.moved(world, place, torch.zeros_like(place), key), place)
    action = pushed(0, 0, 400)
    cut = action * (FASTEST / action.norm(dim=1, keepdim=True)).clamp(max=1)
    points = place[:, None] + torch.linspace(0, 1, 100)[None, :, None] * cut[:, None]
    clear = ~covered(world.boxes + 0.1 * world.boxes.new_tensor([-1, -1, 1, 1]), points).any(1)
    assert clear.float().mean() > 0.5
    torch.testing.assert_close(rooms.moved(world, place, action, key)[clear], (place + cut)[clear])


@worlds
def test_the_brightest_pixel_is_the_nearest_and_the_rest_is_as_defined(rooms: Rooms) -> None:
    key = keyed(2)
    world = rooms.world(rooms.drawn(key))
    places = torch.stack([rooms.free(world, key, name) for name in ("a", "b")], dim=1)
    others = walked(key, rooms.distractors, 2)
    shown = rooms.shown(world, places, others)
    assert shown.shape == (64, 2, 2, 65, 65) and shown.dtype == torch.uint8
    column, row = places.round().long().unbind(-1)
    pixels = shown[:, :, 0].flatten(2)
    assert torch.equal(pixels.gather(2, (row * 65 + column)[..., None])[..., 0], pixels.amax(-1))
    at = torch.stack(torch.meshgrid(torch.arange(65.0), torch.arange(65.0), indexing="xy"), -1)
    expected = drawn(at, places, 1.0)
    for other in others.unbind(2):
        expected = torch.maximum(expected, drawn(at, other, 0.5))
    assert torch.equal(shown[:, :, 0], expected)
    solid = covered(world.boxes, at.view(1, -1, 2)).view(64, 65, 65)
    solid[:, :4], solid[:, 61:], solid[:, :, :4], solid[:, :, 61:] = False, False, False, False
    assert torch.equal(shown[:, 0, 1], solid * torch.tensor(255, dtype=torch.uint8)) and torch.equal(
        shown[:, 0, 1], shown[:, 1, 1]
    )


@worlds
def test_who_touches_the_border_is_seen_there(rooms: Rooms) -> None:
    world, ends = rooms.world(rooms.drawn(keyed(1, 1))), torch.tensor([4.5, 30.0, 59.5])
    places = torch.cartesian_prod(ends, ends)[None]
    at = torch.stack(torch.meshgrid(torch.arange(65.0), torch.arange(65.0), indexing="xy"), -1)
    shown = rooms.shown(world, places, places.new_zeros(1, 9, 0, 2))
    assert torch.equal(shown[:, :, 0], drawn(at, places, 1.0))
    assert torch.equal(shown[0, :, 1], world.picture.expand(9, -1, -1))


def drawn(at: Tensor, places: Tensor, full: float) -> Tensor:
    """A dot at places (B, T, 2) as defined, pixel by pixel."""
    squared = (at - places[:, :, None, None]).square().sum(-1)
    return (255 * full * torch.exp(-squared / (2 * DOT**2))).round().to(torch.uint8)


@worlds
def test_tasks_begin_and_end_in_different_rooms_away_from_walls(rooms: Rooms) -> None:
    tasks = rooms.tasks(keyed(3), 15.0, 50.0)
    start, goal, world = tasks[:, :2], tasks[:, 2:4], rooms.world(tasks[:, 4:])
    assert tasks.shape == (64, len(rooms.columns)) and (rooms.room(world, start) != rooms.room(world, goal)).all()
    away = (start - goal).norm(dim=1)
    assert ((away >= 15) & (away <= 50)).all()
    grown = world.boxes + 0.99 * MARGIN * DOT * world.boxes.new_tensor([-1, -1, 1, 1])
    assert not covered(grown, torch.stack((start, goal), 1)).any()
    assert torch.equal(tasks[:9], rooms.tasks(keyed(3, 9), 15.0, 50.0))
    with pytest.raises(Mistake, match="90 to inf pixels apart"):
        rooms.tasks(keyed(3), 90.0)


@worlds
def test_what_happens_to_a_task_does_not_depend_on_those_beside_it(rooms: Rooms) -> None:
    tasks, few = rooms.tasks(keyed(4)), slice(10, 13)
    together = played(rooms, tasks)
    alone = played(rooms, tasks[few], few)
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one[few], other)
    assert together[1].any() or (together[0] - tasks[:, 2:4]).norm(dim=1).min() > NEAR


def played(rooms: Rooms, tasks: Tensor, which: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """Where a hundred steps lead, whether a goal was ever reached, and the last picture."""
    seen, ever = rooms.reset(tasks), torch.zeros(len(tasks), dtype=torch.bool)
    assert torch.equal(seen["position"][:, 0], tasks[:, :2]) and torch.equal(rooms.goal()["position"][:, 0], tasks[:, 2:4])
    for step in range(100):
        seen, reached = rooms.step(pushed(5, step)[which])
        ever |= reached
    return seen["position"][:, 0], ever, seen["frames"]


@worlds
def test_who_begins_anew_does_as_if_alone_and_the_others_go_on(rooms: Rooms) -> None:
    tasks, which = rooms.tasks(keyed(7, 6)), torch.tensor([True, False, False, True, False, False])
    seen = [rooms.reset(tasks)]
    seen += [rooms.step(pushed(7, step, 6))[0] for step in range(8)]
    rooms.reset(tasks)
    for step in range(4):
        rooms.step(pushed(7, step, 6))
    again = rooms.restart(which, tasks)
    for later in range(4):
        for name, value in again.items():
            assert torch.equal(value[~which], seen[4 + later][name][~which]), (later, name)
            assert later or torch.equal(value[which], seen[0][name][which]), name
        actions = torch.where(which[:, None], pushed(7, later, 6), pushed(7, 4 + later, 6))
        again = rooms.step(actions)[0]
    assert all(torch.equal(value[which], seen[4][name][which]) for name, value in again.items())


def test_the_layouts_of_two_rooms_have_the_ranges_that_are_asked_for() -> None:
    numbers = TwoRooms(0).drawn(keyed(0, 5000))
    assert numbers.amin(0).tolist() == [20, 10] and numbers.amax(0).tolist() == [44, 54]
    fixed = TwoRooms(0, wall=(32, 32), door=(18, 18)).drawn(keyed(0, 50))
    assert torch.equal(fixed, torch.tensor([32.0, 18.0]).expand(50, 2))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (TwoRooms, {"door": (20, 10)}, r"door is \[20, 10\]; both must be from 9 to 55, the smaller one first"),
        (TwoRooms, {"wall": (5, 30)}, r"wall is \[5, 30\]; both must be from 15 to 49"),
        (SerialRooms, {"door": (10, 64)}, r"door is \[10, 64\]"),
    ],
)
def test_walls_and_doors_that_cannot_be_are_refused_before_anything_is_made(kind: Any, options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(0, **options)


@pytest.mark.parametrize(("options", "share"), [({"closed": 0.0}, 0.0), ({"closed": 1.0}, 1.0), ({}, 0.5)])
def test_a_door_of_four_rooms_is_closed_as_often_as_asked_and_all_rooms_are_reached(
    options: dict[str, Any], share: float
) -> None:
    rooms = FourRooms(0, **options)
    world = rooms.world(rooms.drawn(keyed(0, 2000)))
    open_ = rooms.doors(world)[2]
    assert open_.shape == (2000, 4) and (open_.sum(1) >= 3).all()
    assert (open_.sum(1) == 3).float().mean() == pytest.approx(share, abs=0.04)
    assert share == 0 or (~open_).float().mean(0).min() > 0.1 * share


def test_without_rebound_a_world_knows_no_chance() -> None:
    rooms = TwoRooms(0, rebound=0.0)
    key = keyed(6)
    world = rooms.world(rooms.drawn(key))
    place = rooms.free(world, key, "start")
    for step in range(30):
        one, other = (rooms.moved(world, place, pushed(6, step), keyed(seed)) for seed in (1, 2))
        assert torch.equal(one, other)
        place = one


@worlds
def test_what_is_foreseen_is_seen_when_it_is_done_but_for_chance(rooms: Rooms) -> None:
    tasks, actions = (
        rooms.tasks(keyed(4, 8)),
        torch.stack([torch.stack([pushed(s, k, 8) for k in range(9)], 1) for s in (1, 2)], 1),
    )
    rooms.reset(tasks)
    for step in range(5):
        rooms.step(pushed(3, step, 8))
    place, others = rooms._place, rooms._others
    foreseen = rooms.foreseen(actions, [1, 4, 9])
    for candidate in range(2):
        now = place
        for step in range(9):
            now = moved(rooms._world.boxes, now, cut(actions[:, candidate, step], FASTEST), torch.zeros(8))
            if step + 1 in (1, 4, 9):
                seen = rooms.seen(rooms._world, now[:, None], others.places[:, None])
                at = [1, 4, 9].index(step + 1)
                for name, value in foreseen.items():
                    assert torch.equal(value[candidate::2, at], seen[name][:, 0]), name
    assert torch.equal(rooms._place, place)
