"""What is in a folder: which of its files can be read, and why the others cannot. Every file is looked at before training begins.

Files are of unknown origin, and whatever goes wrong while one is read is one reason, in words. Nothing is ever written into the
folder. What was found good is remembered in the user's cache by path, size and time of change, so that a large folder is looked
at once; what was bad is looked at again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hjepa.errors import Mistake, listed, nearest, some

Look = Callable[[Path], int]
"""Reads a file to see whether it can be read: how many frames it has, or `Unreadable`."""

_log = logging.getLogger("hjepa.data")

VERSION = 1
"""Of what is remembered: one more where files that were good may not be so any longer."""


class Unreadable(Exception):
    """A file that cannot be read; the message says why."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is read is one `Unreadable`. Pipes, folders and empty files are not even opened."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("is no file")
        if not found.st_size:
            raise Unreadable("is empty")
        yield
    except Unreadable:
        raise
    except Exception as error:  # decoders raise a dozen kinds
        lines = str(getattr(error, "strerror", None) or error).splitlines() or [""]
        raise Unreadable(f"{type(error).__name__}: {lines[0].replace(str(path), 'the file')}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of decoders: what matters of them is a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def tell(said: str) -> None:
    """To a person, once a process."""
    _log.warning(said)


@dataclass(frozen=True)
class Manifest:
    """The files of a folder, by their paths within it."""

    root: Path
    good: dict[str, int]
    """How many frames each has; in the order of their names."""
    bad: dict[str, str]
    """Why each of the others is not read."""


def manifest(root: Path, kind: str, endings: tuple[str, ...], look: Look, allowed: float) -> Manifest:
    """Of the files of `kind` (`images`, say), whose names end in `endings`.

    Mistake where there is none that can be read, or where a share of more than `allowed` of them cannot.
    """
    if not os.path.isdir(root):
        raise Mistake(f"{root}: there is no such folder{nearest(root.name, _folders(root.parent))}")
    foreign = f"its name does not end in {listed(endings)}"
    bad, candidates = {}, []
    for path, reason in _walk(root, root, endings, ()):
        if reason or not path.lower().endswith(endings):
            bad[path] = reason or foreign
        else:
            candidates.append(path)
    kept = _kept(root, kind)
    known = _remembered(kept)
    looked = _looked(root, sorted(candidates), known, look)
    good = {path: [*mark, found] for path, (mark, found) in looked.items() if isinstance(found, int)}
    bad |= {path: found for path, (_, found) in looked.items() if isinstance(found, str)}
    made = Manifest(root, {path: count for path, (*_, count) in good.items()}, dict(sorted(bad.items())))
    if known != {"good": good, "bad": made.bad}:
        _remember(kept, {"good": good, "bad": made.bad})
    _complain(made, kind, foreign, allowed, kept)
    return made


def _folders(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []


def _complain(found: Manifest, kind: str, foreign: str, allowed: float, kept: Path) -> None:
    failed = [f"{path} ({reason})" for path, reason in found.bad.items() if reason != foreign]
    if not found.good:
        others = sum(reason == foreign for reason in found.bad.values())
        said = f"; {others} other files are there, and {foreign.replace('its name does', 'their names do')}" if others else ""
        said += f"; what cannot be read: {some(failed)}" if failed else ""
        raise Mistake(f"{found.root}: there are no {kind} in it that can be read{said}")
    total = len(failed) + len(found.good)
    said = f"{found.root}: {len(failed)} of {total} {kind} cannot be read"
    if len(failed) > allowed * total:
        raise Mistake(f"{said}, more than the share of {allowed:g} that `bad` allows: {some(failed)} (all of them: {kept})")
    if failed:
        tell(f"{said}: {some(failed)} (all of them: {kept})")


def _walk(root: Path, folder: Path, endings: tuple[str, ...], above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Every path below a folder that is not hidden, and why it is no file that can be read, as far as its name says; else nothing."""
    here = os.path.realpath(folder)
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        yield _within(root, folder), f"{type(error).__name__}: {error.strerror}"
        return
    for name in names:
        path = folder / name
        if name != _printable(name):
            yield _within(root, path), "its name is not UTF-8"
        elif not os.path.isdir(path):
            yield _within(root, path), ""
        elif name.lower().endswith(endings):
            yield _within(root, path), "is a folder"
        elif os.path.realpath(path) in (*above, here):
            yield _within(root, path), "a link back to a folder that it lies in"
        else:
            yield from _walk(root, path, endings, (*above, here))


def _within(root: Path, path: Path) -> str:
    return _printable(path.relative_to(root).as_posix())


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


# --- what was found good before ---------------------------------------------------------------------------------------


def _looked(root: Path, paths: list[str], known: dict[str, Any], look: Look) -> dict[str, tuple[list[int], int | str]]:
    """Each path with what changes when its file does, and the frames that the file has, or why it cannot be read."""
    before = known.get("good", {})

    def found(path: str) -> tuple[list[int], int | str]:
        mark = _mark(root / path)
        if mark and before.get(path, [])[:2] == mark:
            return mark, before[path][2]
        try:
            return mark, look(root / path)
        except Unreadable as error:
            return mark, str(error)

    with quietly(), ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(paths, threads.map(found, paths), strict=True))


def _mark(path: Path) -> list[int]:
    """What changes when a file does; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _kept(root: Path, kind: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=12).hexdigest()
    return cache / "hjepa" / "manifests" / f"{kind}-{folder}-{VERSION}.json"


def _remembered(kept: Path) -> dict[str, Any]:
    """`good`: path -> size, time of change, frames; `bad`: path -> reason, for a person to read."""
    try:
        known = json.loads(kept.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(kept: Path, known: dict[str, Any]) -> None:
    """Whole or not at all, and where the cache cannot be written not at all: it only saves time."""
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(known, indent=0))
        fresh.replace(kept)
