"""The journal loses nothing that was written, can be rewound, and a reader gets each record once."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa.errors import Mistake
from hjepa.journal import Journal, Position, follow, read

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def told(record: dict[str, Any]) -> Any:
    """A record in brief: (n, step), or what happened."""
    return (record["n"], record["step"]) if "n" in record else record["event"]


def brief(path: Path) -> list[Any]:
    return [told(record) for record in read(path)]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return (math.isnan(left) and math.isnan(right)) or (left == right and math.copysign(1, left) == math.copysign(1, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def run(journal: Journal, steps: Iterator[int] | range) -> None:
    for step in steps:
        journal.metrics(step, {"loss": 1 / (step + 1)})


# --- what is written is read -----------------------------------------------------------------------------------------


def test_records_as_they_stand(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1732700000.5)
    journal = Journal(path)
    journal.event("started", 0, reason="new", versions={"torch": "2"})
    journal.metrics(10, {"loss/frame/vicreg.std": 0.25, "energy/frame": math.nan})
    journal.metrics(20, {"count": 3})
    assert path.read_bytes().splitlines() == [
        b'{"event":"started","step":0,"time":1732700000.5,"reason":"new","versions":{"torch":"2"}}',
        b'{"n":0,"step":10,"time":1732700000.5,"metrics":{"loss/frame/vicreg.std":0.25,"energy/frame":{"$float":"nan"}}}',
        b'{"n":1,"step":20,"time":1732700000.5,"metrics":{"count":3.0}}',
    ]


names = st.text() | st.sampled_from(["$", "$float", "$$x"])
numbers = st.floats(allow_nan=True, allow_infinity=True)
facts = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.integers(0, 9), st.dictionaries(names, numbers, max_size=4) | facts), max_size=6))
@settings(max_examples=80, deadline=None)
def test_everything_comes_back(tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[int, Any]]) -> None:
    path = tmp_path_factory.mktemp("run") / "journal"
    journal = Journal(path)
    for step, entry in entries:
        if isinstance(entry, dict) and all(isinstance(value, float) for value in entry.values()):
            journal.metrics(step, entry)
        else:
            journal.event("noted", step, fact=entry)
    back = list(read(path))
    assert [record["step"] for record in back] == [step for step, _ in entries]
    assert same([record["metrics"] if "n" in record else record["fact"] for record in back], [entry for _, entry in entries])
    assert [record["n"] for record in back if "n" in record] == list(range(sum("n" in record for record in back)))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize("name", ["n", "event", "time", "metrics"])
def test_facts_cannot_pass_for_something_else(path: Path, name: str) -> None:
    journal = Journal(path)
    with pytest.raises(ValueError, match=f"cannot be called {name}"):
        journal.event("noted", 0, **{name: 1})
    assert brief(path) == []


def test_what_json_cannot_say_leaves_the_journal_alone(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(TypeError):
        journal.event("noted", 0, fact={1, 2})
    journal.event("noted", 0)
    assert brief(path) == ["noted"]


def test_it_imports_no_torch() -> None:
    code = "import sys, hjepa.journal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# --- opened again ----------------------------------------------------------------------------------------------------


def test_numbers_go_on(path: Path) -> None:
    for start in (0, 3, 6):
        journal = Journal(path)
        journal.event("started", start)
        run(journal, range(start, start + 3))
        journal.close()
    assert [entry for entry in brief(path) if entry != "started"] == [(n, n) for n in range(9)]


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(path: Path) -> None:
    journal = Journal(path)
    journal.event("started", 0)
    run(journal, range(3))
    journal.close()
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for torn in range(last, len(whole)):
        path.write_bytes(whole[:torn])
        assert brief(path) == ["started", (0, 0), (1, 1)]
        again = Journal(path)
        again.metrics(2, {})
        again.close()
        assert brief(path) == ["started", (0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("line", [b"\0\0\0\0", b"", b"{", b"5", b"{}", b'{"n":1,"event":"x"}', b"\xff"])
def test_anything_else_that_cannot_be_read_is_named(path: Path, line: bytes) -> None:
    journal = Journal(path)
    run(journal, range(3))
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + b"".join(rest))
    for opened in (Journal, lambda path: list(read(path))):
        with pytest.raises(Mistake, match=f"{path}, line 2: not a journal record"):
            opened(path)
    with pytest.raises(Mistake, match=f"{path}, after byte {len(first)}: not a journal record"):
        follow(path)


@pytest.mark.parametrize("order", [(0, 2, 3), (0, 1, 1), (1, 2, 3)])
def test_lost_and_double_lines_are_named(path: Path, order: tuple[int, ...]) -> None:
    journal = Journal(path)
    run(journal, range(4))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(Mistake, match=rf"{path}, line \d: metrics record \d where \d was due"):
        Journal(path)


def test_a_full_disk_leaves_whole_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, real = Journal(path), os.write
    journal.metrics(0, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: real(descriptor, line[:9]))
        with pytest.raises(OSError, match="no room"):
            journal.metrics(1, {"loss": 1.0})
    journal.metrics(1, {"loss": 1.0})
    assert brief(path) == [(0, 0), (1, 1)]


WRITER = """
import sys
from pathlib import Path
from hjepa.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.event("started", journal.mark()["n"])
for step in range(10**9):
    journal.metrics(step, {f"metric/{number}": step / (number + 1) for number in range(20)})
    print(step, flush=True)
"""


def test_a_killed_writer_loses_nothing(path: Path) -> None:
    chance, count, starts = random.Random(0), 0, 5
    for start in range(starts):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read().splitlines()
        writer.wait()
        records = [record for record in read(path) if "n" in record]
        assert len(list(read(path))) - len(records) == start + 1
        assert [record["n"] for record in records] == list(range(len(records)))
        assert len(records) - count >= len(said)
        assert all(len(record["metrics"]) == 20 for record in records)
        count = len(records)
    Journal(path).close()


# --- rewound ---------------------------------------------------------------------------------------------------------


def test_metrics_after_the_mark_go_and_events_stay(path: Path) -> None:
    journal = Journal(path)
    journal.event("started", 0)
    run(journal, range(3))
    mark = journal.mark()
    assert mark == {"n": 3, "bytes": path.stat().st_size}
    before = path.read_bytes()
    journal.metrics(3, {"loss": 0.1})
    journal.event("interrupted", 4, signal="TERM")
    journal.metrics(4, {"loss": 0.1})
    journal.close()

    again = Journal(path)
    again.event("resumed", 3)
    again.rewind(mark)
    assert path.read_bytes().startswith(before)
    assert again.mark()["n"] == 3
    assert brief(path) == ["started", (0, 0), (1, 1), (2, 2), "interrupted", "resumed"]
    run(again, range(3, 6))
    assert brief(path)[6:] == [(3, 3), (4, 4), (5, 5)]
    assert sorted(os.listdir(path.parent)) == ["journal"]
    again.close()


def test_a_mark_of_another_attempt_still_fits(path: Path) -> None:
    """Events that were kept move the bytes, not the numbers."""
    journal = Journal(path)
    run(journal, range(2))
    first = journal.mark()
    run(journal, range(2, 4))
    second = journal.mark()
    run(journal, range(4, 6))
    journal.event("interrupted", 6)
    journal.rewind(first)
    run(journal, range(2, 6))
    journal.rewind(second)
    assert brief(path) == [(0, 0), (1, 1), "interrupted", (2, 2), (3, 3)]


def test_a_journal_that_ends_before_the_mark_is_a_mistake(path: Path) -> None:
    journal = Journal(path)
    run(journal, range(2))
    with pytest.raises(Mistake, match=r"holds 2 metrics records.* after 17"):
        journal.rewind({"n": 17, "bytes": 0})
    assert len(brief(path)) == 2


@given(st.lists(st.sampled_from(["step", "step", "step", "save", "die", "torn", "event"]), max_size=40))
@settings(max_examples=100, deadline=None)
def test_however_a_run_goes_there_is_no_gap_and_no_double(tmp_path_factory: pytest.TempPathFactory, acts: list[str]) -> None:
    """A run that dies goes back to its last checkpoint; the journal then is that of a run that never died, and its history."""
    path = tmp_path_factory.mktemp("run") / "journal"
    journal, step, saved, history = Journal(path), 0, (0, {"n": 0, "bytes": 0}), []
    position, mirrored = Position(), []
    for number, act in enumerate(acts):
        if act == "step":
            journal.metrics(step, {"loss": float(step)})
            step += 1
        elif act == "save":
            saved = step, journal.mark()
        elif act == "event":
            journal.event(f"noted {number}", step)
            history.append(f"noted {number}")
        else:
            journal.close()
            path.write_bytes(path.read_bytes() + (b'{"n":3' if act == "torn" else b""))
            journal, step = Journal(path), saved[0]
            journal.rewind(saved[1])
        if number % 3 == 0:
            records, position = follow(path, position, limit=1 + number % 4)
            mirrored += records
    told_now = brief(path)
    assert [entry for entry in told_now if isinstance(entry, tuple)] == [(n, n) for n in range(step)]
    assert [entry for entry in told_now if isinstance(entry, str)] == history
    journal.close()
    while records := follow(path, position)[0]:
        mirrored += records
        position = follow(path, position)[1]
    shown = [told(record) for record in mirrored]
    numbered = [entry for entry in shown if isinstance(entry, tuple)]
    assert numbered == [(n, n) for n in range(len(numbered))]
    assert len(numbered) >= step
    assert [entry for entry in shown if isinstance(entry, str)] == history


class Crash(BaseException):
    pass


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "close"])
def test_a_crash_while_rewinding_leaves_the_old_or_the_new(tmp_path: Path, call: str) -> None:
    old = ["started", (0, 0), (1, 1), "saved", (2, 2), "interrupted", (3, 3)]
    new = ["started", (0, 0), (1, 1), "saved", "interrupted"]
    for last in range(10):
        path = tmp_path / f"{last}"
        journal = Journal(path)
        for entry in old:
            journal.event(entry, 0) if isinstance(entry, str) else journal.metrics(entry[1], {})
        left, real = [last], getattr(os, call)

        def counted(*args: Any, left: list[int] = left, real: Any = real, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return real(*args, **options)

        crashed = False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, counted)
            try:
                journal.rewind({"n": 2, "bytes": 0})
            except Crash:
                crashed = True
        assert brief(path) in ((old, new) if crashed else (new,))
        again = Journal(path)
        again.rewind({"n": 2, "bytes": 0})
        again.metrics(2, {})
        assert brief(path) == [*new, (2, 2)]
        if not crashed:
            break
    assert last > 0
    assert not crashed


# --- followed --------------------------------------------------------------------------------------------------------


def test_following_gives_what_is_new(path: Path) -> None:
    assert follow(path) == ([], Position())
    journal = Journal(path)
    assert follow(path) == ([], Position())
    journal.event("started", 0)
    run(journal, range(5))
    records, position = follow(path, limit=4)
    assert [told(record) for record in records] == ["started", (0, 0), (1, 1), (2, 2)]
    records, position = follow(path, position)
    assert [told(record) for record in records] == [(3, 3), (4, 4)]
    assert follow(path, position) == ([], position)
    with path.open("ab") as file:
        file.write(b'{"n":5,"step":5,')
    assert follow(path, position) == ([], position)
    Journal(path).event("resumed", 5)
    records, position = follow(path, position)
    assert [told(record) for record in records] == ["resumed"]
    assert (position.n, position.events, position.bytes) == (5, 2, path.stat().st_size)


def test_a_journal_that_was_rewound_gives_each_record_once(path: Path) -> None:
    journal = Journal(path)
    journal.event("started", 0)
    run(journal, range(2))
    mark = journal.mark()
    run(journal, range(2, 6))
    journal.event("interrupted", 6)
    _, position = follow(path)
    journal.event("resumed", 2)
    journal.rewind(mark)
    records, position = follow(path, position)
    assert [told(record) for record in records] == ["resumed"]
    run(journal, range(2, 5))
    records, position = follow(path, position)
    assert records == []
    assert position.bytes == path.stat().st_size
    run(journal, range(5, 9))
    assert [told(record) for record in follow(path, position)[0]] == [(6, 6), (7, 7), (8, 8)]


def test_counts_are_enough_to_go_on(path: Path) -> None:
    journal = Journal(path)
    journal.event("started", 0)
    run(journal, range(3))
    journal.event("interrupted", 3)
    assert [told(record) for record in follow(path, Position(n=2, events=1))[0]] == [(2, 2), "interrupted"]


def test_a_rewound_journal_that_grew_past_the_position_is_noticed(path: Path) -> None:
    """Line upon line of the same length: only what stands there tells."""
    journal = Journal(path)
    run(journal, range(3))
    mark = journal.mark()
    run(journal, range(3, 6))
    _, position = follow(path)
    journal.rewind(mark)
    time.sleep(0.001)
    run(journal, range(3, 9))
    assert [told(record) for record in follow(path, position)[0]] == [(6, 6), (7, 7), (8, 8)]


def test_what_is_old_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    run(journal, range(1000))
    _, position = follow(path, limit=1000)
    run(journal, range(1000, 1002))
    looked = []
    monkeypatch.setattr(json, "loads", lambda line, real=json.loads, **options: (looked.append(line), real(line, **options))[1])
    assert len(follow(path, position)[0]) == 2
    assert len(looked) == 2


# --- speed -----------------------------------------------------------------------------------------------------------


def test_a_record_takes_microseconds(path: Path) -> None:
    journal, best = Journal(path), math.inf
    metrics = {f"loss/frame/term.{number}": 1 / (number + 3) for number in range(20)}
    for _ in range(20):
        start = time.process_time()
        for step in range(50):
            journal.metrics(step, metrics)
        best = min(best, (time.process_time() - start) / 50)
    assert best < 200e-6  # measured: 30e-6 on an idle core
