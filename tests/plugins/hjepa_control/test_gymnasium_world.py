"""Other people's environments as worlds: what is seen, done and reached is theirs, copy by copy."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hjepa.errors import Mistake
from hjepa.randomness import Key

gymnasium = pytest.importorskip("gymnasium")
from hjepa_control.gymnasium_world import SEEDS, GymnasiumWorld  # noqa: E402
from hjepa_control.random_goals import RandomGoals  # noqa: E402

KEY = Key.of(0).fold(torch.arange(6))


class Line(gymnasium.Env):
    """Someone on a line of 24 pixels, by steps of at most 2, in pictures of 12 x 24; `goals` and `box` say what it is like."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, goals: bool = False, box: Any = None, render_mode: str | None = None) -> None:
        self.goals, self.render_mode = goals, render_mode
        self.action_space = gymnasium.spaces.Box(-2, 2, (1, 1), np.float32) if box is None else box
        vector = gymnasium.spaces.Box(0, 24, (1,), np.float64)
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = gymnasium.spaces.Dict(dict.fromkeys(names, vector)) if goals else vector

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(0, 12), self.np_random.uniform(12, 24)
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        assert action in self.action_space
        self.place = float(np.clip(self.place + action[0, 0], 0, 23.9))
        there = abs(self.place - self.goal) < 2
        return self.seen(), 0.0, self.place > 23, False, ({"is_success": there} if self.goals else {})

    def seen(self) -> Any:
        here, there = np.array([self.place]), np.array([self.goal])
        return {"observation": here, "achieved_goal": here, "desired_goal": there} if self.goals else here

    def render(self) -> Any:
        picture = np.zeros((12, 24, 3), np.uint8)
        picture[:, int(self.place)] = 255
        return picture


gymnasium.register("hjepa_test/Line-v0", Line, max_episode_steps=50)


def world(**options: Any) -> GymnasiumWorld:
    return GymnasiumWorld(0, id="hjepa_test/Line-v0", **options)


def test_copies_do_what_each_would_alone() -> None:
    worlds, tasks = world(size=12), world().tasks(KEY)
    assert tasks.shape == (6, 1) and (tasks == tasks.round()).all() and (tasks < SEEDS).all() and len(tasks.unique()) == 6
    together = played(worlds, tasks)
    for number in (4, 1):
        alone = played(worlds, tasks[number : number + 1], number)
        assert all(torch.equal(one[number : number + 1], other) for one, other in zip(together, alone))


def played(made: GymnasiumWorld, tasks: Tensor, first: int = 0) -> list[Tensor]:
    seen, told = made.reset(tasks), []
    push = 6 * torch.rand(10, 6, 1, generator=torch.Generator().manual_seed(0)) - 3
    for step in range(10):
        told += list(seen.values())
        seen, reached = made.step(push[step, first : first + len(tasks)])
        told.append(reached)
    return told


def test_what_is_rendered_is_what_is_seen_and_vectors_beside_it() -> None:
    made = world(size=12)
    seen = made.reset(torch.tensor([[3.0], [4.0]]))
    assert seen.keys() == {"frames", "state"}
    assert seen["frames"].shape == (2, 1, 3, 12, 12) and seen["state"].shape == (2, 1, 1)
    for picture, place in zip(seen["frames"][:, 0], seen["state"][:, 0, 0]):
        expected = torch.zeros(12)
        expected[int(place) // 2] = 0.5
        torch.testing.assert_close(picture, expected.expand(3, 12, 12))
    assert world(size=24, options={"goals": True}).reset(torch.tensor([[3.0]])).keys() == {"frames", "state", "achieved"}


def test_actions_are_bounded_and_repeated_and_the_end_is_the_end() -> None:
    made = world(repeat=3)
    assert made.actions.low.tolist() == [-2.0] and made.actions.high.tolist() == [2.0]
    before = made.reset(torch.tensor([[3.0]]))["state"]
    after, reached = made.step(torch.tensor([[9.0]]))
    torch.testing.assert_close(after["state"], before + 6)
    assert not reached
    for _ in range(4):
        after, reached = made.step(torch.tensor([[2.0]]))
    assert reached and after["state"] > 23
    assert torch.equal(made.step(torch.tensor([[-2.0]]))[0]["state"], after["state"])
    short = world(steps=2)
    short.reset(torch.tensor([[3.0]]))
    moved = [short.step(torch.tensor([[1.0]])) for _ in range(3)]
    assert torch.equal(moved[1][0]["state"], moved[2][0]["state"]) and not moved[2][1]


def test_goals_are_known_where_there_are_any() -> None:
    made = world(options={"goals": True})
    tasks = made.tasks(KEY, 5.0, 10.0)
    seen, goal = made.reset(tasks), made.goal()["achieved"]
    away = (goal - seen["achieved"]).abs()
    assert goal.shape == (6, 1, 1) and (away >= 5).all() and (away <= 10).all()
    for _ in range(10):
        seen, reached = made.step((goal - seen["achieved"])[:, 0])
    assert reached.all() and ((seen["achieved"] - goal).abs() < 2).all()
    for _ in range(2):
        seen, reached = made.step(torch.full((6, 1), -2.0))
    assert not reached.any() and ((seen["achieved"] - goal).abs() >= 2).all()  # a goal does not end an episode: the world may
    with pytest.raises(Mistake, match="none has a goal 90 to inf away"):
        made.tasks(KEY, 90.0)
    plain = world()
    plain.reset(tasks)
    for asked in (plain.goal, lambda: plain.tasks(KEY, 1.0)):
        with pytest.raises(Mistake, match="has no goals: it observes one array, and achieved_goal and desired_goal are needed"):
            asked()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"options": {"box": gymnasium.spaces.Discrete(3)}}, r"acted in by Discrete\(3\); actions must be numbers"),
        ({"options": {"box": gymnasium.spaces.Box(-np.inf, 1, (1,))}}, "has actions without bounds"),
        ({"options": {"speed": 3}}, "'hjepa_test/Line-v0' cannot be made: TypeError: .*speed"),
        ({"id": "hjepa_test/Lime-v0"}, "'hjepa_test/Lime-v0' cannot be made: NameNotFound.*Line"),
        ({"id": "hjepa_nowhere:Line-v0"}, "cannot be made: ModuleNotFoundError.*hjepa_nowhere"),
    ],
)
def test_what_cannot_be_acted_in_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        GymnasiumWorld(0, **({"id": "hjepa_test/Line-v0"} | options))


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
    with pytest.raises(Mistake, match=r"pip install 'hjepa\[sim\]'"):
        world()


@pytest.mark.skipif(not importlib.util.find_spec("gymnasium_robotics"), reason="needs pip install 'hjepa[sim]'")
def test_point_maze_is_seen_and_acted_in() -> None:
    os.environ.setdefault("MUJOCO_GL", "egl")
    made = GymnasiumWorld(0, id="gymnasium_robotics:PointMaze_UMaze-v3", size=48, repeat=4, options={"width": 48, "height": 48})
    tasks = made.tasks(Key.of(0).fold(torch.arange(2)), 1.0)
    first = made.reset(tasks)
    assert first["frames"].shape == (2, 1, 3, 48, 48) and first["frames"].std() > 0.01
    assert first["state"].shape == (2, 1, 4) and (made.goal()["achieved"] - first["achieved"]).norm(dim=-1).min() >= 1
    for _ in range(10):
        seen, reached = made.step(torch.ones(2, 2))
    assert reached.shape == (2,) and not torch.equal(seen["frames"], first["frames"])
    assert (seen["achieved"] - first["achieved"]).norm(dim=-1).min() > 0.1


def test_a_goal_that_somebody_came_upon_has_a_picture() -> None:
    made = RandomGoals(0, of=lambda seed: GymnasiumWorld(seed, id="hjepa_test/Line-v0"), near=2.0, by="state")  # type: ignore[arg-type]
    tasks = made.tasks(KEY, 4.0)
    seen, goal = made.reset(tasks), made.goal()
    assert goal["frames"].shape == (6, 1, 3, 64, 64)
    for _ in range(12):
        seen, reached = made.step((goal["state"] - seen["state"])[:, 0])
    assert reached.all()
    torch.testing.assert_close(seen["frames"], goal["frames"], atol=1e-3, rtol=0.0)
