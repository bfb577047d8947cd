"""P26: a schedule is a pure function of the step, its ends are exact, and no length of training or warm-up breaks it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa.schedules import SHAPES, Schedule

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    warmup = draw(st.integers(0, 30))
    written = {"from": draw(NUMBERS), "to": draw(NUMBERS), "shape": draw(st.sampled_from(sorted(SHAPES))), "warmup": warmup}
    if draw(st.booleans()):
        written["at"] = warmup + draw(st.integers(0, 30))
    return Schedule.read(written, steps=draw(st.integers(1, 60)))


@settings(deadline=None)
@given(schedules())
def test_it_rises_stays_goes_and_ends_exactly(schedule: Schedule):
    values = [schedule(step) for step in range(schedule.total + 5)]
    ends = sorted([schedule.first, schedule.last])
    for step, value in enumerate(values):
        if step < schedule.warmup:
            assert value == schedule.first * (step + 1) / schedule.warmup
        elif step < schedule.at:
            assert value == schedule.first
        elif step >= schedule.total - 1:
            assert value == schedule.last
        else:
            slack = 1e-9 * max(map(abs, ends))
            assert ends[0] - slack <= value <= ends[1] + slack
    after = values[max(schedule.at, schedule.warmup) :]
    assert sorted(after, reverse=schedule.last < schedule.first) == pytest.approx(after, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(schedules(), st.integers(0, 100))
def test_what_is_written_down_reads_as_the_same_schedule(schedule: Schedule, step: int):
    again = Schedule.read(schedule.written(), schedule.total)
    assert again(step) == schedule(step)
    assert again.written() == schedule.written()


def test_the_shapes():
    def at(shape: str, step: int, **more: int) -> float:
        return Schedule.read({"from": 2.0, "to": 4.0, "shape": shape, **more}, steps=101)(step)

    assert [at("linear", step) for step in (0, 25, 50, 100)] == [2.0, 2.5, 3.0, 4.0]
    assert at("cosine", 25) == pytest.approx(3 - math.cos(math.pi / 4))
    assert at("cosine", 50) == pytest.approx(3.0)
    assert [at("jump", step, at=50) for step in (0, 49, 50, 100)] == [2.0, 2.0, 4.0, 4.0]
    assert [at("linear", step, warmup=4) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert at("linear", 60, at=20) == 3.0


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("warmup", [0, 1, 2, 50])
def test_one_step_and_a_warm_up_longer_than_training_are_fine(steps: int, warmup: int):
    schedule = Schedule.read({"from": 1.0, "to": 0.0, "shape": "cosine", "warmup": warmup}, steps)
    assert all(0 <= schedule(step) <= 1 for step in range(steps))


def test_a_number_is_a_schedule_that_never_changes():
    schedule = Schedule.read(0.3, steps=10)
    assert {schedule(step) for step in range(20)} == {0.3}
    assert schedule.written() == 0.3
    assert Schedule.read(schedule, steps=99) is schedule


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("text", "finite number"),
        (math.nan, "finite number"),
        (math.inf, "finite number"),
        (True, "finite number"),
        (None, "finite number"),
        ([1.0], "finite number"),
        ({"to": 1.0}, "needs `from`"),
        ({"from": math.nan}, "`from`"),
        ({"from": 1.0, "to": "x"}, "`to`"),
        ({"from": 1.0, "shap": "linear"}, "did you mean 'shape'"),
        ({"from": 1.0, "shape": "linaer"}, "did you mean 'linear'"),
        ({"from": 1.0, "shape": {}}, "unknown shape"),
        ({"from": 1.0, "shape": None}, "unknown shape"),
        ({"from": 1.0, "warmup": -1}, "`warmup`"),
        ({"from": 1.0, "warmup": 1.5}, "`warmup`"),
        ({"from": 1.0, "warmup": True}, "`warmup`"),
        ({"from": 1.0, "at": "x"}, "`at`"),
        ({"from": 1.0, "warmup": 5, "at": 4}, "before the end of `warmup`"),
    ],
)
def test_what_is_no_schedule_is_refused_in_words(written: object, said: str):
    with pytest.raises(ValueError, match=said):
        Schedule.read(written, steps=10)
