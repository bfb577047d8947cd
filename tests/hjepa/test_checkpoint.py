"""A checkpoint gives back what it was given, says so when it cannot, and outlives a crash at any moment (P41 to P43)."""

from __future__ import annotations

import base64
import collections
import json
import math
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hjepa import checkpoint as module
from hjepa.checkpoint import DTYPES, FACTS, MANIFEST, TENSORS, Damaged, flatten, load, newest, save, unflatten
from hjepa.errors import Mistake

FILES = (TENSORS, FACTS, MANIFEST)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for the disk; what would be lost without waiting is played below."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return dense.dtype, tuple(dense.shape), bytes(dense.clone(memory_format=torch.contiguous_format).untyped_storage())


def same(left: Any, right: Any) -> bool:
    """Equal in type and value, tensors and floats bit for bit (one NaN is like another), dicts in order."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return bits(left) == bits(right)
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or (left == right and math.copysign(1, left) == math.copysign(1, right))
    return bool(left == right)


def drawn(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random bytes: every NaN payload, infinity and -0.0 is among them."""
    size = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return (raw % 2).view(dtype).reshape(shape) if dtype is torch.bool else raw.view(dtype).reshape(shape)


def ordered(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(sorted(state.items()))


def never(message: str) -> None:
    pytest.fail(f"nothing was to be said: {message}")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- P41: what was saved comes back ----------------------------------------------------------------------------------

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
drawings = st.builds(drawn, st.integers(0, 2**32), shapes, st.sampled_from(list(DTYPES)))
views = st.sampled_from(
    [lambda x: x, lambda x: x.mT if x.ndim > 1 else x, lambda x: x[::2] if x.ndim else x, lambda x: x[1:] if x.ndim else x]
)
tensors = st.builds(lambda tensor, view: view(tensor), drawings, views)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = scalars.filter(lambda key: key == key) | st.sampled_from(["$", "$float", "$tensor", "$$dict", "a/b", "a", "b"])


def trees(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)

    return st.recursive(leaves, deeper, max_leaves=10)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), tensors, max_size=4))
@settings(max_examples=50, deadline=None)
def test_tensors_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> None:
    back = load(save(tmp_path_factory.mktemp("run"), 1, state, {})).tensors
    assert same(back, ordered(state))
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in back.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (64, 3)], ids=str)
def test_every_dtype_and_shape(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    state = {"transposed": drawn(8, (3, 4), dtype).t(), "x": drawn(7, shape, dtype)}
    assert same(load(save(tmp_path, 1, state, {})).tensors, state)


def test_payloads_of_nan_and_negative_zero(tmp_path: Path) -> None:
    odd = torch.tensor([0x7FC12345, -0x00012345, -0x80000000, 0x7F800001, 0x7F800000], dtype=torch.int32).view(torch.float32)
    assert odd[0].isnan()
    assert odd[2] == 0
    assert same(load(save(tmp_path, 1, {"odd": odd}, {})).tensors["odd"], odd)


def test_tied_and_overlapping_tensors_come_back_each_in_its_own_memory(tmp_path: Path) -> None:
    model = nn.ModuleDict({"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)})
    model["two"].weight = model["one"].weight
    base = torch.arange(10.0)
    state = {
        **model.state_dict(),
        "base": base,
        "first": base[:6],
        "last": base[4:],
        "even": base[::2],
        "square": base[:9].view(3, 3).t(),
    }
    back = load(save(tmp_path, 1, state, {})).tensors
    assert same(back, ordered(state))
    assert len({tensor.untyped_storage().data_ptr() for tensor in back.values()}) == len(back)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in back.values())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in back.values())


def test_the_file_is_safetensors(tmp_path: Path) -> None:
    """Each tensor at a multiple of its width, whatever the order that they come in."""
    state = {f"{number}": drawn(number, (3,), dtype) for number, dtype in enumerate(reversed(DTYPES))}
    data = (save(tmp_path, 1, state, {}) / TENSORS).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    assert end % 8 == 0
    assert all(header[name]["data_offsets"][0] % tensor.itemsize == 0 for name, tensor in state.items())
    assert same(ordered(safetensors.torch.load(data)), ordered(state))


def test_conjugate_negative_and_parameters(tmp_path: Path) -> None:
    complexes = torch.randn(4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    state = {
        "conjugate": complexes.conj(),
        "negative": torch._neg_view(torch.ones(3)),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    back = load(save(tmp_path, 1, state, {})).tensors
    assert all(bits(back[name]) == bits(state[name]) for name in state)
    assert not back["parameter"].requires_grad


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.zeros(2, device="meta"), "meta"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name_before_anything_is_written(tmp_path: Path, tensor: Tensor, word: str) -> None:
    with pytest.raises(Mistake, match=rf"'levels\.frame\.odd'.*{word}"):
        save(tmp_path / "run", 1, {"levels.frame.odd": tensor}, {})
    assert not (tmp_path / "run").exists()


def test_the_one_name_that_safetensors_keeps(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="__metadata__"):
        save(tmp_path, 1, {"__metadata__": torch.ones(1)}, {})


@given(st.dictionaries(keys, trees(scalars, keys), max_size=4))
@settings(max_examples=80, deadline=None)
def test_facts_come_back(tmp_path_factory: pytest.TempPathFactory, facts: dict[Any, Any]) -> None:
    path = save(tmp_path_factory.mktemp("run"), 1, {}, facts)
    assert same(load(path).facts, facts)
    json.loads((path / FACTS).read_bytes(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        ({"a": {"b": [0, torch.ones(1)]}}, r"facts/a/b/1 is a tensor"),
        ({"a": {"b": {1, 2}}}, r"facts/a/b holds a builtins\.set"),
        ({"a": np.float32(1)}, r"facts/a holds a numpy\.float32"),
        ({"a": {(1, 2): 3}}, r"facts/a holds a builtins\.tuple"),
    ],
)
def test_facts_that_are_not_json_are_refused_with_their_path(tmp_path: Path, facts: dict[str, Any], word: str) -> None:
    with pytest.raises(Mistake, match=word):
        save(tmp_path, 1, {}, facts)


# --- trees -----------------------------------------------------------------------------------------------------------


@given(trees(scalars | tensors, keys))
@settings(max_examples=100, deadline=None)
def test_flatten_and_back_through_json(tree: Any) -> None:
    named, skeleton = flatten(tree, "here")
    written = json.dumps(skeleton, allow_nan=False)
    assert same(unflatten(json.loads(written), named), tree)


def test_subclasses_come_back_plain() -> None:
    named, skeleton = flatten({"size": torch.Size([2, 3]), "ordered": collections.OrderedDict(a=np.float64(0.5))})
    assert not named
    assert same(unflatten(json.loads(json.dumps(skeleton)), named), {"size": (2, 3), "ordered": {"a": 0.5}})


def test_names_say_where_and_never_collide() -> None:
    tree = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, 0: torch.tensor(3), "0": torch.tensor(4)}
    named, skeleton = flatten(tree, "optimizer")
    assert sorted(named) == ["optimizer/0", "optimizer/0'", "optimizer/a/b", "optimizer/a/b'"]
    assert same(unflatten(skeleton, named), tree)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


def made(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    groups = [{"params": model[0].parameters(), "lr": 1e-2}, {"params": [*model[1].parameters(), *model[2].parameters()]}]
    return model, torch.optim.AdamW(groups, lr=1e-3, betas=(0.8, 0.99), amsgrad=True)


def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = made(0)
    trained(model, optimizer, range(5))
    moments, skeleton = flatten(optimizer.state_dict(), "optimizer")
    save(tmp_path, 5, {**model.state_dict(), **moments}, {"optimizer": skeleton})
    trained(model, optimizer, range(5, 9))

    again, other = made(1)
    checkpoint = newest(tmp_path, never)
    again.load_state_dict({name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("optimizer/")})
    other.load_state_dict(unflatten(checkpoint.facts["optimizer"], checkpoint.tensors))
    trained(again, other, range(5, 9))
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert same(other.state_dict(), optimizer.state_dict())


# --- P42: any damage is found ----------------------------------------------------------------------------------------


def example(step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"w": drawn(step, (5, 3), torch.float32), "b": torch.tensor(step)}, {"step": step, "lr": [0.1, math.nan], "who": "é"}


def saved(folder: Path, step: int, keep: int = 2) -> Path:
    return save(folder, step, *example(step), keep=keep)


def holds(checkpoint: module.Checkpoint, step: int) -> bool:
    state, facts = example(step)
    return checkpoint.step == step and same(checkpoint.tensors, ordered(state)) and same(checkpoint.facts, facts)


def flipped(file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def truncated(file: Path, chance: random.Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def longer(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes() + chance.choice([b"\n", b" ", b"\0", b"{}"]))


def deleted(file: Path, chance: random.Random) -> None:
    file.unlink()


def test_random_damage_is_found_and_the_one_before_is_loaded(tmp_path: Path) -> None:
    """P42, and what a run does about it. HJEPA_CORRUPTIONS says how many."""
    older, pristine = saved(tmp_path / "run", 1), saved(tmp_path, 2)
    count, chance = int(os.environ.get("HJEPA_CORRUPTIONS", "100")), random.Random(0)
    for number in range(count):
        path = tmp_path / "run" / pristine.name
        shutil.copytree(pristine, path)
        damage, file = chance.choice([flipped, flipped, truncated, longer, deleted]), chance.choice(FILES)
        damage(path / file, chance)
        with pytest.raises(Damaged) as caught:
            load(path)
        assert (caught.value.file.name, bool(caught.value.reason)) == (file, True), number
        said: list[str] = []
        assert newest(older.parent, said.append).step == 1
        assert len(said) == 1
        assert str(path / file) in said[0]
        assert caught.value.reason in said[0]
        shutil.rmtree(path)


def test_every_single_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    path = saved(tmp_path, 1)
    file = path / MANIFEST
    data = file.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(Damaged):
            load(path)
    file.write_bytes(data)
    assert holds(load(path), 1)


@pytest.mark.parametrize("layout", [{"indent": 1}, {"sort_keys": True}, {"separators": (", ", ": ")}], ids=str)
def test_a_manifest_that_says_the_same_in_other_words_is_damaged(tmp_path: Path, layout: dict[str, Any]) -> None:
    file = saved(tmp_path, 1) / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()), **layout) + "\n")
    with pytest.raises(Damaged, match="digest"):
        load(file.parent)


@pytest.mark.parametrize("text", ["", "5", "[]", "null", "{}", '{"a":NaN,"digest":1}', '"digest"', "\xff\xfe"])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    file = saved(tmp_path, 1) / MANIFEST
    file.write_text(text, encoding="latin-1")
    with pytest.raises(Damaged, match=r"manifest\.json: (unreadable|sha256)"):
        load(file.parent)


def test_reasons(tmp_path: Path) -> None:
    def reason(harm: Callable[[Path], Any]) -> str:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        path = saved(tmp_path / "run", 1)
        harm(path)
        with pytest.raises(Damaged) as caught:
            load(path)
        return str(caught.value).removeprefix(f"{path}/")

    def of_tomorrow(path: Path) -> None:
        manifest = json.loads((path / MANIFEST).read_text())
        del manifest["digest"]
        (path / MANIFEST).write_bytes(module._sealed({**manifest, "version": 2}))

    def folder_for(file: Path) -> None:
        file.unlink()
        file.mkdir()

    assert reason(lambda path: (path / TENSORS).unlink()) == "tensors.safetensors: missing"
    assert reason(lambda path: os.truncate(path / FACTS, 3)).startswith("facts.json: truncated: 3 of ")
    assert (
        reason(lambda path: flipped(path / TENSORS, random.Random(0)))
        == "tensors.safetensors: sha256 differs from the manifest"
    )
    assert reason(lambda path: folder_for(path / FACTS)) == "facts.json: unreadable: Is a directory"
    assert reason(of_tomorrow) == "manifest.json: unknown format version 2; this hjepa reads version 1"
    assert reason(shutil.rmtree) == "manifest.json: missing"


def test_files_of_another_checkpoint_are_found(tmp_path: Path) -> None:
    one, two = saved(tmp_path, 1), saved(tmp_path, 2)
    shutil.copy(one / TENSORS, two / TENSORS)
    with pytest.raises(Damaged, match="sha256"):
        load(two)


def test_nothing_to_start_from_is_a_mistake(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(Mistake, match=f"no checkpoint in {folder}$"):
            newest(folder, never)
    for step in (1, 2):
        (saved(tmp_path, step) / FACTS).unlink()
    said: list[str] = []
    with pytest.raises(Mistake, match="no intact checkpoint") as caught:
        newest(tmp_path, said.append)
    assert len(said) == 2
    assert "step-00000002" in said[0]
    assert "step-00000001" in said[1]
    assert "step-00000002/facts.json: missing" in str(caught.value)
    assert "step-00000001/facts.json: missing" in str(caught.value)


def test_a_checkpoint_may_lie_anywhere(tmp_path: Path) -> None:
    path = saved(tmp_path, 3).rename(tmp_path / "the good one")
    assert holds(load(path), 3)


GOLDEN = {
    TENSORS: (
        "cAAAAAAAAAB7InciOnsiZHR5cGUiOiJCRjE2Iiwic2hhcGUiOlszXSwiZGF0YV9vZmZzZXRzIjpbMCw2XX0sImIiOnsiZHR5cGUiOiJCT09MIiwi"
        "c2hhcGUiOlsyXSwiZGF0YV9vZmZzZXRzIjpbNiw4XX19ICAggD8AgIB/AQA="
    ),
    FACTS: (
        "eyJzZWVkIjowLCJsb3NzIjp7IiRmbG9hdCI6Im5hbiJ9LCJiZXRhcyI6eyIkdHVwbGUiOlswLjksMC45OV19LCJncm91cHMiOnsiJGRpY3QiOltb"
        "MCwiYSJdXX19Cg=="
    ),
    MANIFEST: (
        "eyJ2ZXJzaW9uIjoxLCJzdGVwIjoxMjAsImZpbGVzIjp7InRlbnNvcnMuc2FmZXRlbnNvcnMiOnsic2l6ZSI6MTI4LCJzaGEyNTYiOiIxNWE0NGMx"
        "OTA0YzYwYjVhMzFkNTIxM2JkZThiYzBmODE2MjdmMDIxMjVkODM4N2U5MzgzOTljMTkyMWQyMTE1In0sImZhY3RzLmpzb24iOnsic2l6ZSI6OTQs"
        "InNoYTI1NiI6ImNjNTI5YmI0YjIyM2JmZjk1ZTlmZWVjMGQ1ZjYxNzA0NmZiMTMxY2VhNmMxMmJiNDMzODI1ZmVkYTc1NDhjN2QifX0sImRpZ2Vz"
        "dCI6IjBiODZmYTdkMzAyYzYyMDlmY2RlNTYyZmVlZDc1ZjFmNzUxYjFhOWJhODkyZjU3MGEwYzE0NDEwNzIxYzU2NjEifQo="
    ),
}


def test_version_one_is_read_for_ever(tmp_path: Path) -> None:
    """P44: these bytes were written by the first version."""
    for name, data in GOLDEN.items():
        (tmp_path / name).write_bytes(base64.b64decode(data))
    checkpoint = load(tmp_path)
    assert checkpoint.step == 120
    assert same(
        checkpoint.tensors, {"b": torch.tensor([True, False]), "w": torch.tensor([1.0, -0.0, math.inf], dtype=torch.bfloat16)}
    )
    assert same(checkpoint.facts, {"seed": 0, "loss": math.nan, "betas": (0.9, 0.99), "groups": {0: "a"}})


# --- keeping and removing --------------------------------------------------------------------------------------------


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        saved(tmp_path, step, keep=3)
    assert names(tmp_path) == ["step-00000003", "step-00000004", "step-00000005"]
    saved(tmp_path, 123456789)
    assert names(tmp_path) == ["step-00000005", "step-123456789"]
    assert newest(tmp_path, never).step == 123456789
    with pytest.raises(ValueError, match="at least 2"):
        saved(tmp_path, 6, keep=1)


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        saved(tmp_path, step)
    flipped(tmp_path / "step-00000002" / TENSORS, random.Random(0))
    saved(tmp_path, 3)
    assert (tmp_path / "step-00000001").exists()
    flipped(tmp_path / "step-00000003" / TENSORS, random.Random(0))
    said: list[str] = []
    assert holds(newest(tmp_path, said.append), 1)
    assert len(said) == 2
    saved(tmp_path, 3)
    saved(tmp_path, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_a_run_that_went_back_never_loses_what_it_saves(tmp_path: Path) -> None:
    for step in (1, 8, 9):
        saved(tmp_path, step, keep=3)
    for step in (8, 9):
        flipped(tmp_path / f"step-{step:08d}" / TENSORS, random.Random(0))
    saved(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000008", "step-00000009"]
    for step in (8, 9):
        saved(tmp_path, step)
    assert names(tmp_path) == ["step-00000008", "step-00000009"]
    assert holds(newest(tmp_path, never), 9)


def test_a_run_that_goes_back_beyond_intact_ones_keeps_what_it_saves(tmp_path: Path) -> None:
    for step in (1, 8, 9):
        saved(tmp_path, step, keep=3)
    saved(tmp_path, 2)
    saved(tmp_path, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003", "step-00000008", "step-00000009"]


def test_what_stepped_aside_comes_after_what_took_its_place(tmp_path: Path) -> None:
    save(tmp_path, 4, {}, {"attempt": 1}).rename(tmp_path / "aside")
    fresh = save(tmp_path, 4, {}, {"attempt": 2})
    (tmp_path / "aside").rename(tmp_path / "step-00000004~")
    assert newest(tmp_path, never).facts == {"attempt": 2}
    (fresh / FACTS).unlink()
    assert newest(tmp_path, str).facts == {"attempt": 1}


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 4, {"w": torch.zeros(3)}, {"attempt": 1})
    save(tmp_path, 4, {"w": torch.ones(3)}, {"attempt": 2})
    assert names(tmp_path) == ["step-00000004"]
    assert newest(tmp_path, never).facts == {"attempt": 2}


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for process in (dead.pid, os.getpid(), os.getppid(), 1):
        (tmp_path / f".step-00000003.{process}").mkdir()
        (tmp_path / f".step-00000003.{process}" / FACTS).write_text("half")
    (tmp_path / ".step-of-someone-else").mkdir()
    saved(tmp_path, 3)
    assert set(names(tmp_path)) == {
        "step-00000003",
        ".step-of-someone-else",
        ".step-00000003.1",
        f".step-00000003.{os.getppid()}",
    }


# --- P43: a crash at any moment --------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone: nothing after this is done."""


class Machine:
    """Counts what the process asks of the system, dies at the `last` call, and loses what was not yet brought to the disk."""

    CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "unlink", "rmdir")

    def __init__(self, patch: pytest.MonkeyPatch, last: int) -> None:
        self.left, self.names, self.unsafe = last, [], {}
        self.real = {name: getattr(os, name) for name in self.CALLS}
        for name in self.CALLS:
            patch.setattr(os, name, lambda *args, _name=name, **options: self.call(_name, *args, **options))

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        self.names.append(name)
        self.left -= 1
        if self.left <= 0:
            if self.left == 0 and name == "write":
                self.real["write"](args[0], args[1][: len(args[1]) // 2])
            raise Crash
        result = self.real[name](*args, **options)
        if name == "write":
            self.unsafe.setdefault(os.fstat(args[0]).st_ino, os.dup(args[0]))
        if name == "fsync":
            self.safe(os.fstat(args[0]).st_ino)
        return result

    def safe(self, inode: int) -> None:
        if inode in self.unsafe:
            self.real["close"](self.unsafe.pop(inode))

    def lose_power(self) -> None:
        for inode, descriptor in list(self.unsafe.items()):
            os.ftruncate(descriptor, 1)
            self.safe(inode)


def replaced(folder: Path) -> None:
    """Killed while step 2 was replaced: only the old one, aside, is left."""
    saved(folder, 2).rename(folder / "step-00000002~")


BEFORE: dict[str, tuple[Callable[[Path], Any], set[int]]] = {
    "the first": (lambda folder: None, set()),
    "after one": (lambda folder: saved(folder, 1), {1}),
    "with pruning": (lambda folder: [saved(folder, step) for step in (0, 1)], {1}),
    "the same step": (lambda folder: saved(folder, 2), {2}),
    "the same step again": (replaced, {2}),
}


@pytest.mark.parametrize("before", BEFORE)
def test_a_crash_at_any_call_leaves_the_old_or_the_new(tmp_path: Path, before: str) -> None:
    """P43, the power failing at the same moment."""
    prepare, intact = BEFORE[before]
    prepare(tmp_path / "before")
    (tmp_path / "before").mkdir(exist_ok=True)
    for last in range(1, 1000):
        folder = tmp_path / str(last)
        shutil.copytree(tmp_path / "before", folder)
        crashed = False
        with pytest.MonkeyPatch.context() as patch:
            machine = Machine(patch, last)
            try:
                save(folder, 2, example(2)[0], {**example(2)[1], "fresh": True})
            except Crash:
                crashed = True
        machine.lose_power()
        assert_survived(folder, intact, crashed)
        if not crashed:
            break
        saved(folder, 3)
        assert holds(newest(folder, never), 3)
        assert not [name for name in names(folder) if name.startswith(".")]
        saved(folder, 4)
        assert names(folder) == ["step-00000003", "step-00000004"]
        shutil.rmtree(folder)
    assert 15 < last < 100
    assert set(machine.names) >= {"mkdir", "open", "write", "fsync", "close", "rename"}


def assert_survived(folder: Path, intact: set[int], crashed: bool) -> None:
    """The new one, or one of the old, whole, without a word of damage."""
    if not intact and crashed and not (folder / "step-00000002").exists():
        with pytest.raises(Mistake, match="no checkpoint in"):
            newest(folder, never)
        return
    found = newest(folder, never)
    fresh = found.facts.pop("fresh", False)
    assert holds(found, found.step)
    assert fresh or (crashed and found.step in intact)


def test_names_are_on_the_disk_when_they_must_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files' names before the folder is moved, and the folder's before any other checkpoint goes."""
    for step in (1, 2):
        saved(tmp_path, step)
    done: list[str] = []
    rename, rmdir = os.rename, os.rmdir
    folders = {tmp_path.stat().st_ino: "checkpoints"}

    def noted_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        done.append("file" if stat.S_ISREG(status.st_mode) else folders.get(status.st_ino, "fresh"))

    def noted_rename(source: Path, target: Path) -> None:
        done.append("moved" if target.name == "step-00000003" else "hidden")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(os, "rmdir", lambda *args, **options: (done.append("removed"), rmdir(*args, **options)))
    saved(tmp_path, 3)
    assert done == ["file", "file", "file", "fresh", "moved", "checkpoints", "hidden", "removed"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", full)
        saved(tmp_path, 2)
    assert holds(newest(tmp_path, never), 1)
    saved(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    assert holds(load(saved(tmp_path, 1)), 1)


# --- speed -----------------------------------------------------------------------------------------------------------


def test_fifty_megabytes_take_little_time(tmp_path: Path) -> None:
    state = {f"w{index}": torch.randn(1_000_000) for index in range(13)}
    best = math.inf
    for step in range(3):
        start = time.process_time()
        save(tmp_path, step, state, {})
        best = min(best, time.process_time() - start)
    assert best < 0.5
