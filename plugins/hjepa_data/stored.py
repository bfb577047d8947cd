"""Arrays in .npy and .npz files, found by reading headers alone and mapped into memory when they are first used.

The files are untrusted: nothing is unpickled, what a header promises is compared with what the file holds, and whatever is
wrong is one Mistake that names the file. A compressed member of an .npz cannot be mapped: it is read whole, once a process.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from hjepa.errors import Mistake, nearest

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Stored:
    """One array of a file: what its header says, and its values when they are asked for. Other processes map it anew."""

    file: Path
    member: str
    """Its name in the .npz; empty for an .npy file."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int
    """Where the values begin, in the file where they are stored as they are, else in the unpacked member."""
    packed: bool

    @cached_property
    def values(self) -> np.ndarray[Any, Any]:
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        with _reading(self.file):
            if not self.packed:
                return np.memmap(self.file, self.dtype, mode="r", offset=self.offset, shape=self.shape, order=order)
            with zipfile.ZipFile(self.file) as archive:
                return np.ndarray(self.shape, self.dtype, archive.read(self.member), self.offset, order=order)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "values"}


def find(path: Path, single: str) -> dict[str, Stored]:
    """The arrays of a folder of .npy files or of an .npz, by name, or that of an .npy file, named `single`."""
    if path.is_dir():
        files = [file for file in sorted(path.glob("*.npy")) if not file.name.startswith(".")]
        found = {file.stem: _in_file(file) for file in files}
    else:
        found = _in_archive(path) if _start_of(path) == ZIP else {single: _in_file(path)}
    if not found:
        raise Mistake(f"{path}: there is no .npy array in it")
    return found


def _start_of(path: Path) -> bytes:
    folder = path.parent
    if not folder.is_dir():
        raise Mistake(f"{path}: there is no folder {folder}")
    if not path.exists():
        raise Mistake(f"{path}: there is no such file{nearest(path.name, (entry.name for entry in folder.iterdir()))}")
    if not path.is_file():
        raise Mistake(f"{path}: neither a file nor a folder")
    with _reading(path), path.open("rb") as stream:
        return stream.read(len(ZIP))


def _in_file(file: Path) -> Stored:
    with _reading(file), file.open("rb") as stream:
        return _described(stream, file, file.stat().st_size, "", 0, packed=False)


def _in_archive(file: Path) -> dict[str, Stored]:
    with _reading(file), zipfile.ZipFile(file) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        return {info.filename.removesuffix(".npy"): _in_member(archive, info, file) for info in members}


def _in_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path) -> Stored:
    packed = info.compress_type != zipfile.ZIP_STORED
    start = 0 if packed else _start(file, info.header_offset)
    with archive.open(info) as stream:
        return _described(stream, file, info.file_size, info.filename, start, packed)


def _start(file: Path, header: int) -> int:
    """Where a member's bytes begin: after its own header of 30 bytes, its name and its extra field."""
    with file.open("rb") as stream:
        stream.seek(header + 26)
        name, extra = struct.unpack("<HH", stream.read(4))
    return header + 30 + name + extra


def _described(stream: IO[bytes], file: Path, size: int, member: str, start: int, packed: bool) -> Stored:
    """The array whose .npy bytes, `size` of them, begin in `stream`, and in `file` at `start` unless they are packed."""
    where = f"{file}: {member}: " if member else f"{file}: "
    if stream.read(len(NPY)) != NPY:
        raise Mistake(f"{where}neither .npy nor .npz: it does not begin like one")
    version = tuple(stream.read(2))
    if version not in HEADERS:
        raise Mistake(f"{where}a .npy file of version {version}; known are {', '.join(map(str, HEADERS))}")
    shape, fortran, dtype = HEADERS[version](stream)
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise Mistake(f"{where}holds {dtype}; numbers of up to 64 bits are read, and objects never are")
    if min(shape, default=0) < 1:
        raise Mistake(f"{where}is empty: its shape is {shape}")
    end = stream.tell() + math.prod(shape) * dtype.itemsize
    if end > size:
        raise Mistake(f"{where}is cut short: {end} bytes are announced and {size} are there")
    return Stored(file, member, shape, dtype, fortran, start + stream.tell(), packed)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Whatever goes wrong while bytes of unknown origin are parsed (a dozen kinds of exception) is the file's mistake."""
    try:
        yield
    except Mistake:
        raise
    except Exception as error:
        raise Mistake(f"{file}: cannot be read as .npy or .npz: {type(error).__name__}: {error}") from error
