"""The run's own record: JSON lines, appended as they happen; the truth that trackers mirror.

    {"n":17,"step":340,"time":1732700000.5,"metrics":{"loss/frame/vicreg.std":0.25}}
    {"event":"resumed","step":300,"time":1732700000.1,"reason":"..."}

Metrics are numbered from 0 without a gap, events carry no number. A record is one write of one whole line, so a killed process
loses nothing but the line that it was writing, and that one is cut off when the journal is opened again. Every line is strict
JSON: a float that JSON cannot say is written `{"$float":"nan"}`, and any other key that begins with `$` gets one `$` more.

A journal has one writer. Any number of processes may read it meanwhile, with `read` or, again and again, with `follow`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hjepa.errors import Mistake

_OWN = frozenset({"n", "event", "step", "time", "metrics"})


class Journal:
    """The journal at `path`, open for appending; made where there is none.

    Raises `Mistake`, naming file and line, where something other than a torn last line cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._n = whole = 0
        path.touch()
        for number, line in _whole_lines(path):
            record = _record(line, f"{path}, line {number}")
            if record.get("n", self._n) != self._n:
                raise Mistake(
                    f"{path}, line {number}: metrics record {record['n']} where {self._n} was due: lines are lost or double"
                )
            self._n += "n" in record
            whole += len(line)
        self._descriptor = _opened(path)
        os.ftruncate(self._descriptor, whole)
        sync(path.parent)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured at `step`: numbers by name, non-finite ones too."""
        numbers = {name: float(value) for name, value in values.items()}
        self._append({"n": self._n, "step": step, "time": time.time(), "metrics": numbers})
        self._n += 1

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """What happened to the run (started, resumed, interrupted...), with JSON facts. On the disk when this returns."""
        if taken := facts.keys() & _OWN:
            raise ValueError(f"the facts of an event cannot be called {', '.join(sorted(taken))}: the journal uses that itself")
        self._append({"event": kind, "step": step, "time": time.time(), **facts})
        os.fsync(self._descriptor)

    def mark(self) -> dict[str, int]:
        """Where the journal stands, for a checkpoint to remember; everything before it is on the disk."""
        os.fsync(self._descriptor)
        return {"n": self._n, "bytes": os.fstat(self._descriptor).st_size}

    def rewind(self, mark: Mapping[str, int]) -> None:
        """Cuts the metrics after `mark`, whose steps will be done again. Events are history and stay, in order.

        `mark["n"]` decides: bytes move where events of another attempt are kept. The file is replaced, so that a crash leaves
        the old journal or the new one. Raises `Mistake` where the journal does not reach the mark.
        """
        count = mark["n"]
        if count > self._n:
            raise Mistake(
                f"{self.path} holds {self._n} metrics records, but the checkpoint was saved after {count}: records are lost"
            )
        if count == self._n:
            return
        fresh = self.path.with_name(self.path.name + ".rewinding")
        with fresh.open("wb") as file:
            file.writelines(line for _, line in _whole_lines(self.path) if json.loads(line).get("n", -1) < count)
        sync(fresh)
        os.replace(fresh, self.path)
        sync(self.path.parent)
        os.close(self._descriptor)
        self._n, self._descriptor = count, _opened(self.path)

    def close(self) -> None:
        """Everything is on the disk, and nothing can be added any more."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(_strict(record), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(errno.ENOSPC, "no room for another record", str(self.path))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every record, in order; a torn last line is none. Raises `Mistake`, naming file and line, where one cannot be read."""
    for number, line in _whole_lines(path):
        yield _record(line, f"{path}, line {number}")


@dataclass(frozen=True)
class Position:
    """How far a reader has come in a journal: plain numbers, to be kept beside the copy, which then goes on after a crash."""

    n: int = 0
    """Metrics records that were given."""
    events: int = 0
    """Events that were given."""
    bytes: int = 0
    """Where to look first: the end of the last line that was looked at..."""
    line: int = 0
    """...how long that line is..."""
    check: int = 0
    """...and its CRC-32."""


_START = Position()


def follow(path: Path, position: Position = _START, limit: int = 1000) -> tuple[list[dict[str, Any]], Position]:
    """Up to `limit` records that are new since `position`, and the position after them; none where there are none yet.

    Each metrics record (by `n`) and each event (by its place among the events) is given once, also when `rewind` replaced the
    file meanwhile: metrics that are then measured again carry the numbers of those that were given before, and events are never
    cut. `bytes` only saves time: where the line before it is not the one that was read, the file is read from its start, as it
    is for a reader that only knows its counts: `Position(n=..., events=...)`.
    """
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        stands = position.bytes > 0 and _stands(file, position)
        end, passed = (position.bytes, position.events) if stands else (0, 0)
        n, events, last = position.n, position.events, b""
        records: list[dict[str, Any]] = []
        for line in _ending(file, end):
            record = _record(line, f"{path}, after byte {end}")
            passed += "event" in record
            if record.get("n", -1) >= n or passed > events:
                records.append(record)
            n, events = max(n, record.get("n", -1) + 1), max(events, passed)
            end, last = end + len(line), line
            if len(records) == limit:
                break
    if stands and not last:
        return records, position
    return records, Position(n, events, end, len(last), zlib.crc32(last))


def sync(path: Path) -> None:
    """What was written to a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def _stands(file: BinaryIO, position: Position) -> bool:
    """Whether the line that was read last still stands there. Lines hold the time, so then all before it is unchanged too."""
    file.seek(position.bytes - position.line)
    return zlib.crc32(file.read(position.line)) == position.check


def _ending(file: BinaryIO, start: int) -> Iterator[bytes]:
    """Each line from `start` on that is whole."""
    file.seek(start)
    for line in file:
        if not line.endswith(b"\n"):
            return
        yield line


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line that is whole."""
    with path.open("rb") as file:
        yield from enumerate(_ending(file, 0), 1)


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_hook=_restored)
    except ValueError as error:
        raise Mistake(f"{where}: not a journal record ({error})") from None
    if not isinstance(record, dict) or ("n" in record) == ("event" in record):
        raise Mistake(f"{where}: not a journal record (neither metrics nor an event)")
    return record


def _strict(value: Any) -> Any:
    """`value` with the floats that JSON cannot say, and keys that would look like one, in writing."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(float(value))}
    if isinstance(value, Mapping):
        return {"$" + key if str(key).startswith("$") else key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


def _restored(pairs: dict[str, Any]) -> Any:
    if "$float" in pairs:
        return float(pairs["$float"])
    return {key.removeprefix("$"): value for key, value in pairs.items()}


class Unwritten:
    """The journal of those processes that write none."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The first process writes it."""

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """The first process writes it."""

    def rewind(self, mark: Mapping[str, int]) -> None:
        """The first process cuts it."""

    def mark(self) -> dict[str, int]:
        """Nothing was written."""
        return {"n": 0}
