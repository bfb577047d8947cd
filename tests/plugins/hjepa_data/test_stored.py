from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hjepa.errors import Mistake
from hjepa_data.stored import find

VALUES = np.arange(4 * 3 * 5, dtype=np.float32).reshape(4, 3, 5)
LABEL = np.arange(4)


def npy(array: np.ndarray = VALUES) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(save=np.savez) -> bytes:
    stream = io.BytesIO()
    save(stream, frames=VALUES, label=LABEL)
    return stream.getvalue()


FILES = {"npy": npy(), "stored": npz(), "packed": npz(np.savez_compressed)}


def read(path):
    return {name: np.array(stored.values) for name, stored in find(path, "frames").items()}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_of_an_archive(tmp_path, save):
    save(tmp_path / "data.npz", frames=VALUES, label=LABEL, turned=np.asfortranarray(VALUES), odd=VALUES.astype(">f8"))
    back = read(tmp_path / "data.npz")
    assert set(back) == {"frames", "label", "turned", "odd"}
    assert np.array_equal(back["label"], LABEL)
    for name in ("frames", "turned", "odd"):
        assert np.array_equal(back[name], VALUES)


@pytest.mark.parametrize(
    "content", [VALUES, np.asfortranarray(VALUES), VALUES.astype(np.uint8), VALUES > 7, VALUES.astype(">i2")]
)
def test_single_files_and_folders(tmp_path, content):
    (tmp_path / "frames.npy").write_bytes(npy(content))
    (tmp_path / "._frames.npy").write_bytes(b"what another system left")
    (tmp_path / "notes.txt").write_text("not an array")
    for path in (tmp_path, tmp_path / "frames.npy"):
        back = read(path)
        assert list(back) == ["frames"]
        assert np.array_equal(back["frames"], content)


def test_files_are_known_by_their_bytes_not_by_their_names(tmp_path):
    (tmp_path / "data.bin").write_bytes(npz())
    assert set(read(tmp_path / "data.bin")) == {"frames", "label"}


def test_folders_are_read_in_order_of_names(tmp_path, monkeypatch):
    for name in ("c", "a", "b"):
        (tmp_path / f"{name}.npy").write_bytes(npy())
    listing = sorted(os.listdir(tmp_path))
    for names in (listing, listing[::-1]):
        monkeypatch.setattr(type(tmp_path), "glob", lambda self, pattern, names=names: (self / name for name in names))
        assert list(find(tmp_path, "frames")) == ["a", "b", "c"]


def test_a_file_larger_than_memory_is_mapped_not_read(tmp_path):
    """1 TiB of zeros, of which the disk holds one header."""
    shape = (2**20, 2**10, 2**10)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    path = tmp_path / "large.npy"
    path.write_bytes(header.getvalue())
    os.truncate(path, len(header.getvalue()) + 2**40)
    values = find(path, "frames")["frames"].values
    assert values.shape == shape
    assert values[[5, 2**20 - 1]].sum() == 0


def test_members_stored_as_they_are_are_mapped(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / name
        path.write_bytes(content)
        values = find(path, "frames")["frames"].values
        assert isinstance(values, np.memmap) == (name != "packed")


def test_members_with_extra_fields_are_found(tmp_path):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no array")
        info = zipfile.ZipInfo("frames.npy")
        info.extra = b"\x99\x99\x04\x00abcd"
        archive.writestr(info, npy())
    assert np.array_equal(read(path)["frames"], VALUES)


@pytest.mark.parametrize("name", list(FILES))
def test_values_do_not_travel_with_a_pickle(tmp_path, name):
    path = tmp_path / "data"
    path.write_bytes(FILES[name])
    stored = find(path, "frames")["frames"]
    fresh = len(pickle.dumps(stored))
    assert np.array_equal(stored.values, VALUES)
    assert len(pickle.dumps(stored)) == fresh
    assert np.array_equal(pickle.loads(pickle.dumps(stored)).values, VALUES)


def archive_of(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("frames.npy", content)
    return stream.getvalue()


def pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "does not begin like one"),
        (b"some text", "does not begin like one"),
        (npy()[:60], "cannot be read"),
        (npy()[:-1], "is cut short: 368 bytes are announced and 367 are there"),
        (npy(np.zeros((0, 3, 5))), "is empty"),
        (npy(np.float32(3)), "is empty"),
        (npy(np.zeros(3, dtype=complex)), "holds complex128"),
        (npy(np.array(["a", "b"])), "holds <U1"),
        (npy(np.zeros(3, dtype=[("a", "f4")])), r"holds \[\('a'"),
        (pickled(), "holds object"),
        (b"\x93NUMPY\x09\x00", r"version \(9, 0\)"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, why):
    single, archive = tmp_path / "frames.npy", tmp_path / "frames.npz"
    single.write_bytes(content)
    archive.write_bytes(archive_of(content))
    for path in (single, archive, tmp_path):
        with pytest.raises(Mistake, match=why) as caught:
            find(path, "frames")
        assert str(single if path == tmp_path else path) in str(caught.value)


def test_what_is_not_there_is_said(tmp_path):
    (tmp_path / "frames.npz").write_bytes(npz())
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "texts.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    os.mkfifo(tmp_path / "pipe")
    for name, why in {
        "frame.npz": "no such file, did you mean 'frames.npz'",
        "nowhere/frames.npz": "there is no folder",
        "empty": "there is no .npy array in it",
        "texts.npz": "there is no .npy array in it",
        "pipe": "neither a file nor a folder",
    }.items():
        with pytest.raises(Mistake, match=why):
            find(tmp_path / name, "frames")


def test_a_file_that_shrinks_after_its_header_was_read_is_a_mistake(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / name
        path.write_bytes(content)
        stored = find(path, "frames")["frames"]
        os.truncate(path, 200)
        with pytest.raises(Mistake, match="cannot be read"):
            _ = stored.values


@st.composite
def damaged(draw) -> bytes:
    content = bytearray(FILES[draw(st.sampled_from(sorted(FILES)))])
    for _ in range(draw(st.integers(0, 6))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))] + draw(st.binary(max_size=40)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged() | st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: b"\x93NUMPY\x01\x00\x76\x00" + tail))
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_give_arrays_or_a_mistake(tmp_path, content):
    """P45."""
    path = tmp_path / "data"
    path.write_bytes(content)
    said = str(path)
    try:
        read(path)
    except Mistake as mistake:
        said = str(mistake)
    assert str(path) in said
