"""Worlds of rooms through Gymnasium's doors: what comes out is what the batched world does, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium")
from gymnasium.utils.env_checker import check_env  # noqa: E402

from hjepa_control.four_rooms import FourRooms  # noqa: E402
from hjepa_control.rooms import FASTEST  # noqa: E402

DOOR = "hjepa_control.gymnasium_ids:"
IDS = [f"hjepa/{name}Rooms-v0" for name in ("Two", "Serial", "Four")]


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_finds_nothing_to_say_against_them(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(DOOR + name).unwrapped)


def test_they_are_known_by_name_before_anything_heavy_is_imported() -> None:
    script = """
import sys, gymnasium, hjepa_control.gymnasium_ids
assert "torch" not in sys.modules
assert {id for id in gymnasium.registry if id.startswith("hjepa/")} == set(sys.argv[1:])
"""
    subprocess.run([sys.executable, "-c", script, *IDS], check=True)
    without = "import sys, hjepa_control, hjepa_control.rooms; assert 'gymnasium' not in sys.modules"
    subprocess.run([sys.executable, "-c", without], check=True)


def walk(count: int, steps: int = 20) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).uniform(-1, 1, (steps, count, 2)).astype(np.float32)


def test_a_task_that_is_told_is_what_the_batched_world_makes_of_it() -> None:
    rooms = FourRooms(0, distractors=2)
    env = gymnasium.make(DOOR + "hjepa/FourRooms-v0", distractors=2)
    task = [20.0, 15.0, 50.0, 50.0, 15.0, 45.0, 15.0, 45.0, 0.0]
    seen, info = env.reset(seed=5, options={"task": task})
    batch, reached = rooms.reset(torch.tensor([task])), torch.tensor([False])
    assert info["task"].tolist() == task and seen["goal"].tolist() == [50.0, 50.0]
    for action in walk(1)[:, 0]:
        picture = torch.from_numpy(seen["image"]).permute(2, 0, 1)
        assert torch.equal((batch["frames"][0, 0] * 255).round().to(torch.uint8), picture)
        assert torch.equal(torch.from_numpy(seen["position"]), batch["position"][0, 0]) and not reached.any()
        batch, reached = rooms.step(FASTEST * torch.from_numpy(action)[None])
        seen, reward, terminated, _, _ = env.step(action)
        assert reward == terminated == bool(reached)


def test_who_gets_there_is_rewarded_and_done() -> None:
    env = gymnasium.make(DOOR + "hjepa/TwoRooms-v0", render_mode="rgb_array")
    env.reset(options={"task": [10.0, 40.0, 20.0, 40.0, 32.0, 32.0]})
    ends = [env.step(np.array([1.0, 0.0], np.float32))[1:3] for _ in range(3)]
    assert ends == [(0.0, False), (0.0, False), (1.0, True)]
    picture = env.render()
    assert picture.shape == (260, 260, 3) and picture.dtype == np.uint8
    assert (picture[..., 1].astype(int) - picture[..., 0] > 100).any()


@pytest.mark.parametrize("count", [1, 5])
def test_many_at_a_time_do_what_each_would_alone(count: int) -> None:
    """Beside Gymnasium's own copies, one after the other: the same to the bit, through ends and new beginnings."""
    name, options = "hjepa/FourRooms-v0", {"distractors": 1, "max_episode_steps": 6}
    many = gymnasium.make_vec(DOOR + name, count, **options)
    alone = gymnasium.make_vec(name, count, vectorization_mode="sync", **options)
    for reset in ({"seed": 3}, {"seed": [7] * count}, {}):
        compared(many.reset(**reset)[0], alone.reset(**reset)[0])
        for action in walk(count):
            one, other = many.step(action), alone.step(action)
            compared(one[0], other[0])
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one[1:4], other[1:4]))


def test_many_can_be_told_their_tasks_and_each_ends_on_its_own() -> None:
    many = gymnasium.make_vec(DOOR + "hjepa/TwoRooms-v0", 2)
    tasks = np.array([[10, 40, 10 + far, 40, 32, 32] for far in (6, 9)], np.float32)
    many.reset(seed=0, options={"task": tasks})
    ends, rewards, infos, places = [], [], [], []
    for _ in range(3):
        seen, reward, terminated, _, info = many.step(np.array([[1, 0], [1, 0]], np.float32))
        ends.append(terminated.tolist()), rewards.append(reward.tolist()), infos.append(info)
        places += seen["position"][1:, 0].tolist() if len(places) < 2 else []
    assert ends == [[True, False], [False, True], [False, False]] and rewards == [[1, 0], [0, 1], [0, 0]]
    assert places == pytest.approx([12.45, 14.9], abs=1e-4)
    assert not infos[0] and infos[1]["_task"].tolist() == [True, False] and infos[2]["_task"].tolist() == [False, True]
    assert np.array_equal(infos[1]["task"][1], tasks[1]) and not np.array_equal(infos[2]["task"], tasks)


def compared(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]) and value.dtype == other[name].dtype, name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wal": [3, 4]}, "two_rooms has no option 'wal', did you mean 'wall'"),
        ({"rebound": -1}, "two_rooms: rebound: Input should be greater than or equal to 0; written: -1"),
        ({"wall": [44, 20]}, r"wall is \[44, 20\]"),
    ],
)
def test_what_a_world_cannot_be_told_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gymnasium.make(DOOR + "hjepa/TwoRooms-v0", **options)
    with pytest.raises(ValueError, match="a task has the numbers start_x, start_y, goal_x, goal_y, wall, door; written"):
        gymnasium.make("hjepa/TwoRooms-v0").reset(options={"task": [1.0, 2.0]})
