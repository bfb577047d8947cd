"""Walks, recorded in a file of HDF5, so that nothing has to be walked again, and others can read it.

    python -m hjepa_control.recording four_rooms distractors=2 --out walks.h5 --episodes 10000 --frames 65

writes walks through a world of rooms, as `trajectories` has them; or of any other world what it shows to someone who does anything.
The same call writes the same episodes. A file holds

    frames          (E, T, C, H, W) uint8
    actions         (E, T-1, A): what was done between the steps
    NAME            (E, T, ...): anything else of each step, `position` say
    episodes/NAME   (E, ...): what holds for all of an episode, `layout` say; `lengths`: how many of its steps count, where not all do

and as attributes what was told: `world`, `options` (JSON), `seed`.

    E episodes    T frames
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from torch import Tensor

from hjepa.contracts import Batch
from hjepa.errors import Mistake
from hjepa_control.gymnasium_world import GymnasiumWorld
from hjepa_control.named import Named
from hjepa_control.roaming import Roaming
from hjepa_control.trajectories import Trajectories

FRAMES, ACTIONS, EPISODES, LENGTHS = "frames", "actions", "episodes", "lengths"

TOGETHER = 32
"""Episodes that are in memory at a time."""

PIECE = 16
"""Steps that are packed, and unpacked, together: a window of a long episode does not cost all of it."""


class Episodes(Protocol):
    """What can be recorded: any dataset, for one."""

    def batch(self, ids: Tensor, device: torch.device) -> Batch: ...


def library() -> Any:
    """h5py; Mistake where it is not there."""
    try:
        import h5py
    except ImportError:
        raise Mistake("HDF5 is read and written by h5py, which is not installed: pip install 'hjepa[hdf5]'") from None
    return h5py


def walks(name: str, told: Mapping[str, Any], frames: int, seed: int) -> Episodes:
    """What is recorded of the world of that name: each sample is an episode."""
    build = Named(name, told)
    if isinstance(world := build(seed), GymnasiumWorld):
        return Roaming(seed, world, frames)
    return Trajectories(seed, of=build, frames=frames)


def record(dataset: Episodes, file: Path, episodes: int, about: Mapping[str, Any]) -> None:
    """The first samples of a dataset as episodes; `file` is there as a whole or not at all. Mistake where it is there already."""
    with _whole(file) as fresh, library().File(fresh, "w") as into:
        into.attrs.update(about)
        for first in range(0, episodes, TOGETHER):
            ids = torch.arange(first, min(first + TOGETHER, episodes))
            for name, values in _named(dataset.batch(ids, torch.device("cpu"))).items():
                if name not in into:
                    _begin(into, name, episodes, values)
                into[name][first : first + len(ids)] = values


def _named(batch: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """What is written, by its name in the file. What has a number of values for each step has three axes or more."""
    steps, named = batch[FRAMES].shape[1], {}
    for name, value in batch.items():
        whole = name != ACTIONS and (value.dim() < 3 or value.shape[1] != steps)
        stored = value.mul(255).round().to(torch.uint8) if name == FRAMES else value
        named[f"{EPISODES}/{name}" if whole else name] = stored.numpy()
    return named


def _begin(into: Any, name: str, episodes: int, values: np.ndarray[Any, Any]) -> None:
    shape = (episodes, *values.shape[1:])
    if values.ndim < 3 or not values[0].size:
        into.create_dataset(name, shape, values.dtype)
        return
    piece = (1, min(shape[1], PIECE), *shape[2:])
    into.create_dataset(name, shape, values.dtype, chunks=piece, compression="gzip", compression_opts=1, shuffle=name != FRAMES)


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """Where to write what shall be `file` once it is whole."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if not file.parent.is_dir():
            raise Mistake(f"{file}: there is no folder {file.parent}")
        if file.exists():
            raise Mistake(f"{file}: is there already; take another name, or take it away")
        try:
            yield fresh
            with fresh.open("rb") as written:
                os.fsync(written.fileno())
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise Mistake(f"{file}: cannot be written: {error}") from None


def _told(written: list[str]) -> dict[str, Any]:
    pairs = [one.partition("=") for one in written]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"{wrong[0]!r} is no option; options are written key=value")
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def main(arguments: list[str]) -> int:
    """What a person types; 2 where it is a mistake."""
    parser = argparse.ArgumentParser(prog="python -m hjepa_control.recording", description="Records walks through a world.")
    parser.add_argument("world", help="an environment, as studies name it")
    parser.add_argument("options", nargs="*", metavar="key=value", help="what the world is told")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--frames", type=int, required=True, help="of each episode")
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_intermixed_args(arguments)
    try:
        if said.episodes < 1 or not 2 <= said.frames <= 1024:
            raise ValueError(
                f"--episodes must be 1 or more, and --frames from 2 to 1024; written: {said.episodes}, {said.frames}"
            )
        if not 0 <= said.seed < 1 << 63:
            raise ValueError(f"--seed must be from 0 to 2^63 - 1; written: {said.seed}")
        told = _told(said.options)
        about = {"world": said.world, "options": json.dumps(told), "seed": said.seed}
        record(walks(said.world, told, said.frames, said.seed), said.out, said.episodes, about)
    except (Mistake, ValueError, yaml.YAMLError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
