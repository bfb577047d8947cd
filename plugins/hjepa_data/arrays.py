"""Samples from NumPy files: videos, trajectories, features, with whatever is known about them.

The files are mapped into memory, so that they may be larger than it, and only the samples of a batch are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hjepa.contracts import Batch, Fraction, Spec
from hjepa.errors import Mistake, listed, nearest
from hjepa.nn.splits import SPLITS, Splits
from hjepa.randomness import Key, permuted
from hjepa_data.stored import Stored, find


class Arrays(Splits):
    """Arrays of one file or folder, whose first axis counts the samples.

    Options:
        path: an .npy file, an .npz file, or a folder of .npy files; a name without `.npy` is the key in batches.
        main: the array that the first level reads unless it says otherwise. An .npy file alone gets this name.
        valid, test: which share of the samples is held out for these splits; the others are for `train`.

    The main array is (n,T,C,H,W), (n,T,H,W) with one channel, or (n,T,D). Any other array of T steps that is (n,T,C,H,W), or
    (n,T,D) of floating-point numbers, can be read as well. `actions` is (n,T-1,A): what was done between the steps.

    In a batch, images of bytes become float32 in [0,1], that is divided by 255; other streams, actions and floating-point
    numbers become float32; integers become int64; booleans stay.

    An .npz written by `numpy.savez` is mapped like an .npy file; one by `numpy.savez_compressed` is unpacked into memory.
    Which samples a split has depends on the seed, `valid` and `test`.
    """

    def __init__(self, seed: int, *, path: str, main: str = "frames", valid: Fraction = 0.1, test: Fraction = 0.1) -> None:
        if valid + test >= 1:
            raise ValueError(f"valid ({valid}) and test ({test}) leave nothing to train on")
        self.path, self.main = Path(path).expanduser().absolute(), main
        self.arrays = find(self.path, main)
        self.count = self._common_length()
        self.streams = self._streams()
        self.key = Key.of(seed, "arrays")
        self.ends = self._ends(valid, test)

    def __len__(self) -> int:
        first, end = self.ends[self.name]
        return end - first

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        rows = permuted(ids.cpu() + self.ends[self.name][0], self.count, self.key).numpy()
        return {key: self._read(key, stored, rows, device) for key, stored in self.arrays.items()}

    def _read(self, key: str, stored: Stored, rows: np.ndarray[Any, Any], device: torch.device) -> Tensor:
        native = stored.dtype.newbyteorder("=")
        values = torch.from_numpy(np.ascontiguousarray(stored.values[rows], dtype=native)).to(device)
        if key in self.streams and self.streams[key].maps:
            values = values.float().div_(255) if native == np.uint8 else values.float()
            return values if values.dim() == 5 else values[:, :, None]
        if key in self.streams or key == "actions" or native.kind == "f":
            return values.float()
        return values if native.kind == "b" else values.long()

    def _common_length(self) -> int:
        lengths = {key: stored.shape[0] for key, stored in self.arrays.items()}
        if len(set(lengths.values())) > 1:
            raise Mistake(f"{self.path}: arrays of one length are needed; there are {_pairs(lengths)}")
        return next(iter(lengths.values()))

    def _streams(self) -> dict[str, Spec]:
        if self.main not in self.arrays:
            near = nearest(self.main, self.arrays)
            raise Mistake(f"{self.path}: there is no array {self.main!r} among {listed(self.arrays)}{near}")
        shape = self.arrays[self.main].shape
        if len(shape) not in (3, 4, 5):
            raise Mistake(f"{self.path}: {self.main} is {shape}; it must be (n,T,C,H,W), (n,T,H,W) or (n,T,D)")
        actions = self._action_width(shape[1])
        others = [
            key for key, stored in self.arrays.items() if key not in (self.main, "actions") and _readable(stored, shape[1])
        ]
        return {key: _spec(self.arrays[key].shape, actions) for key in (self.main, *others)}

    def _action_width(self, steps: int) -> int:
        if "actions" not in self.arrays:
            return 0
        shape = self.arrays["actions"].shape
        if len(shape) != 3 or shape[1] != steps - 1:
            raise Mistake(f"{self.path}: actions is {shape}; for {steps} steps it must be ({self.count}, {steps - 1}, A)")
        return shape[2]

    def _ends(self, valid: float, test: float) -> dict[str, tuple[int, int]]:
        """Where each split begins and ends in the shuffled order."""
        held = {"valid": valid, "test": test}
        sizes = {name: max(1, round(self.count * share)) if share else 0 for name, share in held.items()}
        sizes["train"] = self.count - sum(sizes.values())
        if sizes["train"] < 1:
            raise Mistake(f"{self.path}: {self.count} samples are too few to hold out {_pairs(held)} of them")
        ends, first = {}, 0
        for name in SPLITS:
            ends[name] = (first, first + sizes[name])
            first += sizes[name]
        return ends


def _readable(stored: Stored, steps: int) -> bool:
    axes = len(stored.shape)
    return axes > 1 and stored.shape[1] == steps and (axes == 5 or (axes == 3 and stored.dtype.kind == "f"))


def _spec(shape: tuple[int, ...], actions: int) -> Spec:
    ticks = tuple(range(shape[1]))
    if len(shape) == 3:
        return Spec(width=shape[2], ticks=ticks, actions=actions)
    channels, height, width = shape[2:] if len(shape) == 5 else (1, *shape[2:])
    return Spec(maps=((channels, height, width),), ticks=ticks, actions=actions)


def _pairs(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{key} {number}" for key, number in numbers.items())
