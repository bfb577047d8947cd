"""Walks: what the frames show and the actions say agrees with where the dot is."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Spec
from hjepa.errors import Mistake
from hjepa_control.four_rooms import FourRooms
from hjepa_control.serial_rooms import SerialRooms
from hjepa_control.trajectories import Trajectories
from hjepa_control.two_rooms import TwoRooms
from hjepa_control.walls import covered

CPU = torch.device("cpu")


def made(kind: Any = TwoRooms, seed: int = 0, **options: Any) -> Trajectories:
    def build(of: int) -> Any:
        return kind(of)

    build.name = getattr(kind, "__name__", "").lower()  # type: ignore[attr-defined]
    return Trajectories(seed, of=build, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [TwoRooms, SerialRooms, FourRooms])
def test_a_walk_goes_by_its_actions_but_where_a_wall_is(kind: type) -> None:
    data = made(kind)
    batch = data.batch(torch.arange(300), CPU)
    assert batch["frames"].shape == (300, 17, 2, 65, 65) and batch["frames"].dtype == torch.float32
    assert batch["frames"].min() >= 0 and batch["frames"].max() <= 1
    assert data.streams == {"frames": Spec(maps=((2, 65, 65),), ticks=tuple(range(17)), actions=2)}
    world = data.rooms.world(batch["layout"])
    assert not covered(world.boxes, batch["position"]).any()
    off = (batch["position"].diff(dim=1) - batch["actions"]).norm(dim=-1)
    assert 0.6 < (off < 1e-4).float().mean() < 0.99
    assert (off < 1e-4).any(1).float().mean() > 0.9
    assert torch.equal(batch["stopped"][:, 1:, 0], off > 1e-3) and not batch["stopped"][:, 0].any()
    torch.testing.assert_close(middle(batch["frames"][:, :, 0]), batch["position"], atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", [TwoRooms, SerialRooms, FourRooms])
def test_walks_that_shall_meet_a_wall_do(kind: type) -> None:
    """An inner one, and from a place that is free."""

    def met(share: float) -> float:
        data = made(kind, crossing=0.0, contact=share)
        batch = data.batch(torch.arange(300), CPU)
        world, place = data.rooms.world(batch["layout"]), batch["position"]
        assert not covered(world.boxes, place).any()
        off = (place.diff(dim=1) - batch["actions"]).norm(dim=-1) > 1e-4
        grown = world.boxes[:, 4:] + 4 * world.boxes.new_tensor([-1, -1, 1, 1])
        return float((off & covered(grown, place[:, :-1].flatten(1, 2).view(300, -1, 2))).any(1).float().mean())

    assert 0.6 < met(1.0) > met(0.0) + 0.3


def middle(pictures: Tensor) -> Tensor:
    """(B, T, S, S) -> (B, T, 2): the centre of what is bright."""
    at, mass = torch.arange(65.0), pictures.sum((2, 3))
    return torch.stack(((pictures.sum(2) * at).sum(-1) / mass, (pictures.sum(3) * at).sum(-1) / mass), dim=-1)


def test_walks_that_shall_cross_do() -> None:
    def crossed(share: float) -> float:
        data = made(crossing=share)
        batch = data.batch(torch.arange(2000), CPU)
        sides = data.rooms.room(data.rooms.world(batch["layout"]), batch["position"])
        return float((sides != sides[:, :1]).any(1).float().mean())

    never, some, all_ = crossed(0.0), crossed(0.35), crossed(1.0)
    assert never < 0.1 and all_ > 0.6
    assert some == pytest.approx(0.65 * never + 0.35 * all_, abs=0.04)


def test_walks_are_their_ids_own() -> None:
    data = made()
    whole = data.batch(torch.arange(20), CPU)
    part = data.batch(torch.tensor([7, 3]), CPU)
    for name, value in part.items():
        assert torch.equal(value, whole[name][[7, 3]]), name
    for other in (made(seed=1), data.split("test"), data.split("valid")):
        assert not torch.equal(other.batch(torch.arange(20), CPU)["layout"], whole["layout"])
    assert len(data) == 1_000_000 and len(data.split("test")) == 1000
    with pytest.raises(Mistake, match="no split 'tset'"):
        data.split("tset")


def test_distractors_change_the_pictures_alone() -> None:
    plain, busy = (made(partial(FourRooms, distractors=count)).batch(torch.arange(50), CPU) for count in (0, 2))
    for name in ("position", "actions", "layout"):
        assert torch.equal(plain[name], busy[name])
    assert "distractors" not in plain and busy["distractors"].shape == (50, 17, 4)
    assert torch.equal(plain["frames"][:, :, 1], busy["frames"][:, :, 1])
    assert (busy["frames"][:, :, 0] >= plain["frames"][:, :, 0]).all()
    column, row = busy["distractors"].unflatten(2, (2, 2)).round().long().unbind(-1)
    bright = busy["frames"][:, :, 0].flatten(2).gather(2, row * 65 + column)
    assert (bright > 0.4).all() and (bright < 0.51).float().mean() > 0.9


def test_other_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match="trajectories walk through rooms"):
        made(lambda seed: object())  # type: ignore[arg-type]


def test_walks_have_a_pace_of_their_own() -> None:
    """Evenly from both ends, the same at all steps of a walk, and nobody is faster than the world allows."""
    plain, paced = (made(pace=pace).batch(torch.arange(400), CPU)["actions"] for pace in ((1.0, 1.0), (0.5, 1.2)))
    factor = paced.norm(dim=-1) / plain.norm(dim=-1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), atol=1e-5, rtol=0)
    assert 0.5 <= factor.min() < 0.51 and 1.19 < factor.max() <= 1.2001
    assert float(factor.mean()) == pytest.approx(0.85, abs=0.02)
    assert made(pace=(3.0, 3.0)).batch(torch.arange(400), CPU)["actions"].norm(dim=-1).max() <= 2.4501
    with pytest.raises(ValueError, match="pace is \\[2, 1\\]; write the smaller number first"):
        made(pace=(2.0, 1.0))
