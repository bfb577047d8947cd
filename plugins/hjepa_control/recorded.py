"""Windows of recorded episodes, from a file of HDF5 as `python -m hjepa_control.recording` writes it, or as anybody does.

The file may be larger than memory: only the windows of a batch are read. It is untrusted: nothing is unpickled, no link to another
file is followed, and whatever is wrong is one Mistake that names it. Every process opens it for itself, for one batch at a time.

    B samples    T frames of a window    E episodes    L frames of an episode at most
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa.contracts import Batch, Count, Fraction, Spec
from hjepa.errors import Mistake, listed, nearest
from hjepa.nn.splits import SPLITS, Splits
from hjepa.randomness import Key, permuted
from hjepa_control.recording import ACTIONS, EPISODES, FRAMES, LENGTHS, library
from hjepa_control.rooms import pictured


@dataclass(frozen=True)
class Held:
    """One array of the file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Recorded(Splits):
    """Episodes of one file, in windows; where one begins is another sample.

    Options:
        file: the file. `frames` (E,L,C,H,W) of bytes must be in it; `actions` (E,L-1,A), or (E,L,A) whose last is not used, and
            anything else (E,L,...) of each step may be; in the group `episodes` what holds for all of one, (E,...), and `lengths` (E,),
            how many steps of each count, where not all L do.
        frames: T, of a window. Shorter episodes are left out.
        held_out: which share of the episodes `valid` has, and `test`; all windows of an episode are in one split.

    A batch has all of it by the names of the file, steps in windows: bytes (B,T,C,H,W) become float32 in [0,1], floating-point numbers
    float32, whole numbers int64. `frames`, other pictures, and floating-point numbers (B,T,D) can be read by levels.

    Which episodes a split has, and in which order its windows come, depends on the seed.
    """

    def __init__(self, seed: int, *, file: str, frames: Count = 17, held_out: Fraction = 0.1) -> None:
        if 2 * held_out >= 1:
            raise ValueError(f"held_out: {held_out:g} for valid and as much for test leave nothing to train on")
        self.path, self.frames, self.key = Path(file).expanduser().absolute(), frames, Key.of(seed, "recorded")
        self.held, lengths = _described(self.path)
        self.windows = np.maximum(lengths - frames + 1, 0)
        self.streams = {name: spec for name in self.held if (spec := self._spec(name))}
        self.splits = self._splits(lengths, held_out)

    def __len__(self) -> int:
        return int(self.windows[self.splits[self.name]].sum())

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        places = list(zip(*(one.tolist() for one in self._places(ids.cpu())), strict=True))
        with _opened(self.path) as file:
            read = {name: self._read(file, name, places) for name in self.held if name != f"{EPISODES}/{LENGTHS}"}
        return {name.removeprefix(f"{EPISODES}/"): _tensor(values, device) for name, values in read.items()}

    def _places(self, ids: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The episode, and the first step, (B,) each."""
        mine = self.splits[self.name]
        ends = self.windows[mine].cumsum()
        place = permuted(ids, int(ends[-1]), self.key.fold("windows", self.name)).numpy()
        which = np.searchsorted(ends, place, side="right")
        return mine[which], place - (ends - self.windows[mine])[which]

    def _read(self, file: Any, name: str, places: list[tuple[int, int]]) -> np.ndarray[Any, Any]:
        if name.startswith(f"{EPISODES}/"):
            return np.stack([file[name][episode] for episode, _ in places])
        count = self.frames - (name == ACTIONS)
        return np.stack([file[name][episode, first : first + count] for episode, first in places])

    def _spec(self, name: str) -> Spec | None:
        """None where levels cannot read it."""
        shape, dtype = self.held[name].shape, self.held[name].dtype
        if name == ACTIONS or name.startswith(f"{EPISODES}/"):
            return None
        ticks, actions = tuple(range(self.frames)), self.held[ACTIONS].shape[2] if ACTIONS in self.held else 0
        if len(shape) == 5 and dtype == np.uint8:
            return Spec(maps=((shape[2], shape[3], shape[4]),), ticks=ticks, actions=actions)
        return Spec(width=shape[2], ticks=ticks, actions=actions) if len(shape) == 3 and dtype.kind == "f" else None

    def _splits(self, lengths: np.ndarray[Any, Any], share: float) -> dict[str, np.ndarray[Any, Any]]:
        """The episodes of each split."""
        long_enough = np.flatnonzero(self.windows)
        if not len(long_enough):
            raise Mistake(
                f"{self.path}: its longest episode has {lengths.max()} frames, and windows of {self.frames} are asked for"
            )
        held = max(1, round(len(long_enough) * share)) if share else 0
        if len(long_enough) <= 2 * held:
            raise Mistake(f"{self.path}: {len(long_enough)} episodes are too few to hold out {share:g} of them twice")
        order = long_enough[permuted(torch.arange(len(long_enough)), len(long_enough), self.key).numpy()]
        return dict(zip(SPLITS, np.split(order, [len(order) - 2 * held, len(order) - held]), strict=True))


# --- what is in a file of unknown origin ------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Whatever goes wrong while it is read is the file's mistake."""
    h5py = library()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except Mistake:
        raise
    except Exception as error:  # the library raises half a dozen kinds
        raise Mistake(f"{path}: cannot be read as HDF5: {type(error).__name__}: {error}") from error


def _described(path: Path) -> tuple[dict[str, Held], np.ndarray[Any, Any]]:
    """What a file holds, the main stream first, and how many frames (E,) each of its episodes has. Mistake where that does not fit."""
    if not path.is_file():
        near = nearest(path.name, (entry.name for entry in path.parent.glob(f"*{path.suffix}")))
        raise Mistake(f"{path}: there is no such file{near or '; `python -m hjepa_control.recording` writes one'}")
    with _opened(path) as file:
        held = {name: _checked(path, file, name) for name in _names(path, file)}
        if FRAMES not in held:
            raise Mistake(f"{path}: there is no {FRAMES!r} in it{nearest(FRAMES, held)} (there are: {listed(held)})")
        held = {FRAMES: held.pop(FRAMES), **held}
        _refuse(path, held)
        count, most = held[FRAMES].shape[:2]
        told = f"{EPISODES}/{LENGTHS}"
        lengths = np.asarray(file[told][:], np.int64) if told in held else np.full(count, most)
    if lengths.min() < 0 or lengths.max() > most:
        raise Mistake(f"{path}: {told} are from {lengths.min()} to {lengths.max()}, and there are {most} frames at most")
    return held, lengths


def _names(path: Path, file: Any) -> list[str]:
    found = [name for name in file if name != EPISODES]
    group = file.get(EPISODES)
    if group is not None and not hasattr(group, "keys"):
        raise Mistake(f"{path}: {EPISODES} must be a group, of what holds for all of an episode")
    return found + [f"{EPISODES}/{name}" for name in group or ()]


def _checked(path: Path, file: Any, name: str) -> Held:
    h5py = library()
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise Mistake(f"{path}: {name} is a link to somewhere else, and none is followed")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise Mistake(f"{path}: {name} is a group; only {EPISODES!r} may be one")
    if found.is_virtual or found.external:
        raise Mistake(f"{path}: {name} lies in other files, and none is opened")
    if found.shape is None or found.dtype.kind not in "fiub" or found.dtype.itemsize > 8:
        raise Mistake(f"{path}: {name} holds {found.dtype}; numbers of up to 64 bits are read")
    return Held(found.shape, found.dtype)


def _refuse(path: Path, held: dict[str, Held]) -> None:
    """Mistake where shapes do not fit."""
    shape, dtype = held[FRAMES].shape, held[FRAMES].dtype
    if len(shape) != 5 or dtype != np.uint8 or not min(shape):
        raise Mistake(f"{path}: {FRAMES} is {shape} of {dtype}; it must be (E, T, C, H, W) of uint8, and not empty")
    for name, one in held.items():
        whole = name.startswith(f"{EPISODES}/")
        fits = one.shape[: 1 if whole else 2] == shape[: 1 if whole else 2]
        needed = f"({shape[0]}, ...)" if whole else f"({shape[0]}, {shape[1]}, ...)"
        if name == ACTIONS:
            fits = len(one.shape) == 3 and one.shape[0] == shape[0] and one.shape[1] in (shape[1] - 1, shape[1])
            needed = f"({shape[0]}, {shape[1] - 1}, A)"
        if name == f"{EPISODES}/{LENGTHS}":
            fits, needed = one.shape == shape[:1] and one.dtype.kind in "iu", f"({shape[0]},) of whole numbers"
        if not fits:
            hint = "" if whole or name == ACTIONS else f"; what holds for all of an episode belongs into the group {EPISODES!r}"
            raise Mistake(f"{path}: {name} is {one.shape} of {one.dtype}; beside {FRAMES} {shape} it must be {needed}{hint}")


def _tensor(values: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    native = values.dtype.newbyteorder("=")
    tensor = torch.from_numpy(np.ascontiguousarray(values, native)).to(device)
    if native == np.uint8 and tensor.dim() == 5:
        return pictured(tensor)
    return tensor.float() if native.kind == "f" else tensor if native.kind == "b" else tensor.long()
