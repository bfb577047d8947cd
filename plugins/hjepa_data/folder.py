"""Files of a folder as samples: dealt out to splits, labelled by their folders, and one that fails later replaced by the next."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hjepa.errors import Mistake
from hjepa.nn.splits import SPLITS
from hjepa_data.manifest import Manifest, Unreadable, tell

T = TypeVar("T")

NAMED = {"train": "train", "valid": "valid", "val": "valid", "test": "test"}
"""Folders that are splits, where all files lie in such folders."""


@dataclass(frozen=True)
class Folder:
    """The good files of a folder.

    Where all of them lie in folders called `train`, `valid` (or `val`) and `test`, these are the splits. Else, and for a split
    that has no folder of its own, a share of the others is held out by a hash of their paths within the folder: always the same,
    whatever the seed, the order of listing and the files beside them. A file's class is the folder that it lies in, the
    uppermost one below that of its split; files in none are of the class `.`.
    """

    root: Path
    splits: dict[str, list[str]]
    """The paths of each split in the order of their hashes, so that the first thousand are of all folders. An id is a place here."""
    classes: tuple[str, ...]
    """By name; a label is a place here."""
    label: dict[str, int]
    """Path -> place of its class."""
    lost: dict[str, str] = field(default_factory=dict)
    """Path -> why it could not be read later, though the manifest called it good. Only what this process has met."""

    def read(self, split: str, ids: Iterable[int], clips: int, load: Callable[[str, int], T]) -> list[tuple[str, T]]:
        """For each id the path that was read, and what `load(path, clip)` gave, with `clips` ids a file.

        A file that cannot be read any more is replaced by that of the next id of the split, in `lost`, and told of once.
        Mistake where all of them are gone.
        """
        return [self._first(split, one, clips, load) for one in ids]

    def _first(self, split: str, start: int, clips: int, load: Callable[[str, int], T]) -> tuple[str, T]:
        paths = self.splits[split]
        count, failed = len(paths) * clips, {}
        for one in range(start, start + count):
            path, clip = paths[one % count // clips], one % clips
            try:
                found = load(path, clip)
            except Unreadable as error:
                failed[path] = str(error)
                continue
            self._tell(failed, path)
            return path, found
        self._tell(failed, "nothing")
        raise Mistake(f"{self.root}: none of the {len(paths)} files of the split {split!r} can be read any more")

    def _tell(self, failed: dict[str, str], instead: str) -> None:
        for path, reason in failed.items():
            if path not in self.lost:
                self.lost[path] = reason
                tell(f"{self.root / path} can no longer be read ({reason}): {instead} stands for it")


def dealt(manifest: Manifest, valid: float, test: float, unit: Callable[[str], str] = str) -> Folder:
    """The good files of a manifest, with these shares held out. ValueError where the shares leave nothing.

    `unit(path)`: what a file belongs to that is held out as a whole; its own path, as a rule.
    """
    if valid + test >= 1:
        raise ValueError(f"valid ({valid}) and test ({test}) leave nothing to train on")
    paths = list(manifest.good)
    heads = {path: path.split("/")[0] if "/" in path else "." for path in paths}
    named = {NAMED[head] for head in heads.values()} if set(heads.values()) <= NAMED.keys() else set()
    held = {name: share for name, share in (("valid", valid), ("test", test)) if name not in named}
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for path in sorted(paths, key=_hash):
        own = NAMED[heads[path]] if named else "train"
        splits[_held_out(unit(path), held) if own == "train" else own].append(path)
    within = {path: path.partition("/")[2] if named else path for path in paths}
    kind = {path: below.split("/")[0] if "/" in below else "." for path, below in within.items()}
    classes = tuple(sorted(set(kind.values())))
    place = {name: number for number, name in enumerate(classes)}
    return Folder(manifest.root, splits, classes, {path: place[name] for path, name in kind.items()})


def _held_out(path: str, shares: dict[str, float]) -> str:
    """The split of those in `shares` that the path's hash falls into; `train` where it falls into none."""
    number = _hash(path)
    for name, share in shares.items():
        if number < share:
            return name
        number -= share
    return "train"


def _hash(path: str) -> float:
    """In [0, 1)."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=6).digest(), "little") / 2**48
