"""The picture of what success takes: who is where, what the axis says, and names that can be read."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from hjepa.keys import THIRDS
from hjepa.planning import compute
from hjepa.planning.compute import drawn
from hjepa.planning.episodes import interval

COUNT = 30


def scores(hits: int, thirds: tuple[int, int, int], evaluations: float = 0.0, gigaflop: float = 0.0) -> dict[str, float]:
    low, high = interval(hits, COUNT)
    found = {"success": hits / COUNT, "low": low, "high": high}
    for name, count in zip(THIRDS, thirds):
        low, high = interval(count, COUNT // 3)
        found |= {name: 3 * count / COUNT, f"{name}_low": low, f"{name}_high": high}
    return found | ({"evaluations": evaluations, "gigaflop": gigaflop} if evaluations else {})


FOUND = {
    "random": scores(1, (1, 0, 0)),
    "straight": scores(12, (9, 2, 1)),
    "oracle": scores(29, (10, 10, 9), 1000),
    "planned": scores(20, (10, 8, 2), 1000, 5),
    "wide": scores(24, (10, 9, 5), 4000, 20),
}


def points(axes: Axes) -> dict[tuple[float, float], tuple[float, float]]:
    """Where there is a point, and how far its interval goes."""
    found = {}
    for bar in (one for one in axes.containers if isinstance(one, ErrorbarContainer)):
        (x,), (y,) = (getattr(bar.lines[0], f"get_{axis}data")() for axis in "xy")
        (_, low), (_, high) = bar.lines[2][0].get_segments()[0]
        found[float(x), round(float(y), 6)] = (float(low), float(high))
    return found


def lines(axes: Axes) -> list[float]:
    return [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"]  # type: ignore[index]


def test_with_one_model_that_was_learned_predicted_steps_say_what_each_took() -> None:
    found = {name: FOUND[name] for name in ("random", "straight", "oracle", "planned")}
    figure = drawn(found, ["oracle", "planned"], ["planned"])
    whole, near, middle, far = figure.axes
    assert {axes.get_xlabel() for axes in figure.axes} == {"predicted steps a task"}
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert [title.split()[-2] for title in (axes.get_title("left") for axes in (near, middle, far))] == list(THIRDS)
    assert points(whole) == {
        (1000, round(of["success"], 6)): pytest.approx((of["low"], of["high"])) for of in (FOUND["oracle"], FOUND["planned"])
    }
    assert points(far) == {
        (1000, round(of["far"], 6)): pytest.approx((of["far_low"], of["far_high"]))
        for of in (FOUND["oracle"], FOUND["planned"])
    }
    assert lines(whole) == [FOUND["random"]["success"], FOUND["straight"]["success"]]
    for axes in figure.axes:
        assert sorted(text.get_text() for text in axes.texts) == sorted(found)


def test_several_that_were_learned_are_told_apart_by_operations_and_the_world_itself_is_a_line() -> None:
    whole, *_ = drawn(FOUND, ["oracle", "planned", "wide"], ["planned", "wide"]).axes
    assert whole.get_xlabel() == "GFLOP a task"
    assert {x for x, _ in points(whole)} == {5, 20}
    assert FOUND["oracle"]["success"] in lines(whole)
    uncounted = FOUND | {"wide": FOUND["wide"] | {"gigaflop": 0.0}}
    whole, *_ = drawn(uncounted, ["oracle", "planned", "wide"], ["planned", "wide"]).axes
    assert whole.get_xlabel() == "predicted steps a task"
    assert {x for x, _ in points(whole)} == {1000, 4000}


def test_without_distances_there_is_one_panel(tmp_path: Path) -> None:
    flat = {
        name: {key: value for key, value in of.items() if key[:3] not in ("nea", "mid", "far")} for name, of in FOUND.items()
    }
    assert len(drawn(flat, ["oracle", "planned"], ["planned"]).axes) == 1
    assert Image.open(compute.picture(tmp_path / "one.png", flat, ["oracle", "planned"], ["planned"])).size[0] > 1000


def test_those_who_have_the_same_colour_have_another_shape() -> None:
    many = [f"way_{number}" for number in range(20)]
    looks = [compute._look(name, ["oracle", *many]) for name in ("oracle", *many)]
    assert len(set(looks)) == 21
    assert compute._look("random", many) == (compute.FAINT, "o")


def boxes(figure: Figure, axes: Axes) -> list[tuple[str, compute.Box]]:
    """Where words stand."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    found = ((text, Text.get_window_extent(text, renderer)) for text in axes.texts)
    return [(text.get_text(), compute.Box(box.x0, box.y0, box.x1, box.y1)) for text, box in found]


@pytest.mark.parametrize(
    "ways",
    [
        [(15, 1000)] * 9,
        [(30, 1000)] * 9,
        [(30, spent) for spent in (100, 110, 120, 1e5, 1.1e5, 1e6)],
        [(hits, 1000) for hits in (0, 1, 2, 12, 13, 28, 29, 30)],
        [(29, 47_376), (28, 48_000), (28, 156_000), (27, 156_000), (25, 192_000), (25, 193_000), (21, 376_000), (30, 625_000)],
    ],
)
def test_names_stand_within_their_panel_and_over_no_other(ways: list[tuple[int, float]]) -> None:
    found = {name: FOUND[name] for name in ("random", "straight")}
    found |= {f"planner_{place}": scores(hits, (min(10, hits), 0, 10), spent) for place, (hits, spent) in enumerate(ways)}
    figure = drawn(found, list(found)[2:], [])
    figure.draw_without_rendering()
    for axes in figure.axes:
        words = boxes(figure, axes)
        panel = compute.Box(axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1)
        assert len(words) == len(found)
        assert all(box.shared(panel) == pytest.approx(box.size) for _, box in words)
        assert all(one.shared(other) < 0.02 * one.size for (_, one), (_, other) in combinations(words, 2))
