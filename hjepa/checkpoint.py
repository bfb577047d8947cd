"""A run's state on the disk: written whole or not at all, verified before it is believed, without pickle.

    checkpoints/step-00000120/
        tensors.safetensors     every tensor, bit for bit
        facts.json              everything else, in strict JSON
        manifest.json           version, step, size and sha256 of both, and its own digest; written last

A checkpoint is made in a hidden folder beside its place, brought to the disk file by file, and moved there by one rename. A
crash at any moment leaves the checkpoints that were there, and perhaps the new one; what a dead process left half done is swept
by the next save. Where one of the same step is replaced, the old one is called `step-00000120~` for as long as it takes.

What is neither flat nor JSON, such as an optimizer's state, goes through `flatten`:

    moments, skeleton = flatten(optimizer.state_dict(), "optimizer")
    save(folder, step, {**model.state_dict(), **moments}, {"optimizer": skeleton})

    checkpoint = newest(folder, say=print)
    optimizer.load_state_dict(unflatten(checkpoint.facts["optimizer"], checkpoint.tensors))
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hjepa.errors import Mistake
from hjepa.journal import sync

VERSION = 1
TENSORS, FACTS, MANIFEST = "tensors.safetensors", "facts.json", "manifest.json"

DTYPES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What a tensor of a checkpoint may be made of, and how safetensors calls it."""

_PLACE = re.compile(r"step-(\d{8,})~?")
_HIDDEN = re.compile(r"\.step-\d{8,}~?\.(\d+)")


class Damaged(Mistake):
    """A checkpoint is not what was written: which file, and what is wrong with it."""

    def __init__(self, file: Path, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(f"{file}: {reason}")


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given, read back and verified; tensors by name in order, on the CPU, each in memory of its own."""

    step: int
    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def model(self) -> dict[str, Tensor]:
        """Those of what was trained, by their names in it."""
        return {name.removeprefix("model/"): tensor for name, tensor in self.tensors.items() if name.startswith("model/")}


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: int = 2, spare: Path | None = None
) -> Path:
    """Writes a checkpoint to `folder/step-...`, then removes those before the `keep` newest whole ones up to this step.

    `spare` is not removed, and checkpoints of later steps, which a run that went back has yet to reach again, are left alone.
    Raises `Mistake`, before anything is written, where a tensor or a fact cannot be stored. One process at a time saves to a
    folder.
    """
    if keep < 2:
        raise ValueError(f"keep={keep}: at least 2, so that there is another one when the newest is damaged")
    for name, tensor in tensors.items():
        _refuse(name, tensor)
    plain = _facts(facts)
    _made(folder)
    _sweep(folder)
    place = folder / f"step-{step:08d}"
    fresh = _hidden(place)
    os.mkdir(fresh)
    files = {TENSORS: _write(fresh / TENSORS, _safetensors(tensors)), FACTS: _write(fresh / FACTS, [plain])}
    _write(fresh / MANIFEST, [_sealed({"version": VERSION, "step": step, "files": files})])
    sync(fresh)
    _move(fresh, place)
    _prune(folder, place, keep, spare)
    return place


def _refuse(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise Mistake(f"tensor {name!r} is {tensor.dtype}, which a checkpoint cannot hold; allowed: {allowed}")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise Mistake(f"tensor {name!r} is {tensor.layout} on {tensor.device}; a checkpoint holds dense tensors with values")
    if name == "__metadata__":
        raise Mistake("a tensor cannot be called '__metadata__': safetensors uses that name itself")


def _facts(facts: Mapping[str, Any]) -> bytes:
    tensors, plain = flatten(facts, "facts")
    if tensors:
        raise Mistake(f"{min(tensors)} is a tensor: facts are JSON, `flatten` takes the tensors out")
    return _json(plain)


def _json(plain: Any) -> bytes:
    return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The safetensors format, a tensor at a time: the library's own writer needs the whole file in memory, twice."""
    # The widest first, so that each lies at a multiple of its width; by name, so that the same tensors give the same bytes.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, end = {}, 0
    for name in order:
        tensor, start, end = tensors[name], end, end + tensors[name].nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        dense = tensors[name].detach().resolve_conj().resolve_neg().cpu().contiguous()
        yield dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy().data


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The one way to write this manifest, with its own digest: whatever else stands in the file was not written here."""
    return _json({**manifest, "digest": hashlib.sha256(_json(manifest)).hexdigest()})


def _made(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync(folder.parent)


def _write(file: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Brings a file to the disk: its size and sha256, as a manifest says them."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            digest.update(part)
            size += len(part)
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": size, "sha256": digest.hexdigest()}


def _move(fresh: Path, place: Path) -> None:
    """The fresh checkpoint to its place. A folder cannot be renamed over another, so an old one there steps aside first."""
    aside = place.with_name(place.name + "~")
    if place.exists():
        _remove(aside)
        os.rename(place, aside)
    os.rename(fresh, place)
    sync(place.parent)
    _remove(aside)


# ---------------------------------------------------------------------------------------------------------------------
# Removing
# ---------------------------------------------------------------------------------------------------------------------


def _hidden(place: Path) -> Path:
    """Where a checkpoint is while it is made or unmade by this process."""
    return place.with_name(f".{place.name}.{os.getpid()}")


def _remove(place: Path) -> None:
    """Hidden first, so that no half of a checkpoint is ever seen."""
    if place.exists():
        os.rename(place, _hidden(place))
        shutil.rmtree(_hidden(place))


def _sweep(folder: Path) -> None:
    """Removes what dead processes, or this one when it failed, left half done."""
    for path in folder.iterdir():
        match = _HIDDEN.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            shutil.rmtree(path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _prune(folder: Path, fresh: Path, keep: int, spare: Path | None) -> None:
    whole = 0
    for path in _places(folder):
        if _step(path) > _step(fresh) or path == spare:
            continue
        if whole == keep:
            _remove(path)
        elif path == fresh or _is_whole(path):
            whole += 1


def _is_whole(path: Path) -> bool:
    try:
        for name, seal in _manifest(path / MANIFEST)["files"].items():
            with (path / name).open("rb") as file:
                _compare(path / name, os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest(), seal)
    except (Damaged, OSError):
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`, verified first. Raises `Damaged` where it is not, byte for byte, what was written."""
    manifest = _manifest(path / MANIFEST)
    content = {}
    for name, seal in manifest["files"].items():
        data = content[name] = _read(path / name)
        _compare(path / name, len(data), hashlib.sha256(data).hexdigest(), seal)
    try:
        tensors = safetensors.torch.load(content[TENSORS])
        facts = unflatten(json.loads(content[FACTS]), {})
    except (safetensors.SafetensorError, ValueError) as error:
        raise Damaged(path, f"unreadable: {error}") from error
    # Cloned: sums over memory that is aligned otherwise than torch's own may be rounded otherwise.
    return Checkpoint(manifest["step"], path, {name: tensors[name].clone() for name in sorted(tensors)}, facts)


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint:
    """The newest intact checkpoint in `folder`; `say` hears of each damaged one that was passed over.

    Raises `Mistake` where there is none, or none that is intact: a run never starts from zero in silence.
    """
    damages = []
    for path in _places(folder):
        try:
            checkpoint = load(path)
        except Damaged as damage:
            damages.append(str(damage))
            say(f"damaged checkpoint passed over: {damage}")
        else:
            return checkpoint
    if damages:
        raise Mistake("\n  ".join([f"no intact checkpoint in {folder}:", *damages]))
    raise Mistake(f"no checkpoint in {folder}")


def newest_where(folder: Path, step: int, fits: Callable[[dict[str, Any]], bool]) -> Path | None:
    """Where the newest checkpoint up to `step` is whose facts fit. One whose facts cannot be read does not."""
    for path in _places(folder):
        with suppress(Damaged, ValueError):
            if _step(path) <= step and fits(unflatten(json.loads(_read(path / FACTS)), {})):
                return path
    return None


def _places(folder: Path) -> list[Path]:
    """Every checkpoint, newest first; one that stepped aside comes after the one that took its place."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _PLACE.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_step(path), not path.name.endswith("~")), reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-").rstrip("~"))


def _compare(file: Path, size: int, digest: str, seal: Mapping[str, Any]) -> None:
    """What was found in a file, with what its manifest says of it."""
    if size < seal["size"]:
        raise Damaged(file, f"truncated: {size} of {seal['size']} bytes")
    if (size, digest) != (seal["size"], seal["sha256"]):
        raise Damaged(file, "sha256 differs from the manifest")


def _manifest(file: Path) -> dict[str, Any]:
    data = _read(file)
    try:
        manifest: dict[str, Any] = {key: value for key, value in json.loads(data).items() if key != "digest"}
        intact = data == _sealed(manifest)
    except (ValueError, AttributeError):
        raise Damaged(file, "unreadable: not a manifest") from None
    if not intact:
        raise Damaged(file, "sha256 differs from its own digest")
    if manifest.get("version") != VERSION:
        raise Damaged(file, f"unknown format version {manifest.get('version')!r}; this hjepa reads version {VERSION}")
    return manifest


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise Damaged(file, "missing") from None
    except OSError as error:
        raise Damaged(file, f"unreadable: {error.strerror}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Trees of tensors
# ---------------------------------------------------------------------------------------------------------------------


def flatten(tree: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Named tensors, and the rest as JSON: `unflatten` puts them together again.

    A tree is made of dicts (keys may be numbers), lists, tuples, tensors, and None, bool, int, float, str; subclasses come back
    as these. What JSON cannot say is written as `{"$tensor": name}`, `{"$tuple": [...]}`, `{"$dict": [[key, value]...]}` and
    `{"$float": "nan"}`; a key that begins with `$` gets one `$` more. Raises `Mistake` with the path of anything else.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _plain(tree, path, tensors)


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `flatten` took apart; `tensors` may hold others too."""
    match skeleton:
        case {"$tensor": name}:
            return tensors[name]
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(unflatten(item, tensors) for item in items)
        case {"$dict": pairs}:
            return {unflatten(key, tensors): unflatten(value, tensors) for key, value in pairs}
        case dict():
            return {key.removeprefix("$"): unflatten(value, tensors) for key, value in skeleton.items()}
        case list():
            return [unflatten(item, tensors) for item in skeleton]
    return skeleton


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        while path in tensors:  # {"a/b": x, "a": {"b": y}}
            path += "'"
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, Mapping):
        return _plain_mapping(value, path, tensors)
    if isinstance(value, (list, tuple)):
        items = [_plain(item, _joined(path, index), tensors) for index, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    return _scalar(value, path)


def _plain_mapping(mapping: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> Any:
    pairs = [(_scalar(key, path), _plain(value, _joined(path, key), tensors)) for key, value in mapping.items()]
    if all(isinstance(key, str) for key, _ in pairs):
        return {"$" + key if key.startswith("$") else key: value for key, value in pairs}
    return {"$dict": [list(pair) for pair in pairs]}


def _scalar(value: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = type(value)
    raise Mistake(
        f"{path or 'the tree'} holds a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold without pickle; "
        "allowed: tensors, dict, list, tuple, None, bool, int, float, str"
    )


def _joined(path: str, key: Any) -> str:
    return f"{path}/{key}" if path else str(key)
