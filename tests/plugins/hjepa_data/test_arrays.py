from __future__ import annotations

import io
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa.errors import Mistake
from hjepa_data.arrays import Arrays

CPU = torch.device("cpu")


def content(count: int = 20, steps: int = 4) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "frames": draw.integers(0, 256, (count, steps, 3, 6, 5), dtype=np.uint8),
        "actions": draw.normal(size=(count, steps - 1, 2)),
        "observations": draw.normal(size=(count, steps, 7)).astype(np.float16),
        "label": np.arange(count, dtype=np.int16),
        "done": draw.random((count, steps)) < 0.5,
    }


def folder(path: Path, arrays: dict[str, np.ndarray]) -> str:
    path.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return str(path)


def test_arrays_come_back_from_folder_and_archive(tmp_path):
    arrays = content()
    np.savez(tmp_path / "stored.npz", **arrays)
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    paths = [folder(tmp_path / "folder", arrays), str(tmp_path / "stored.npz"), str(tmp_path / "packed.npz")]
    for path in paths:
        data = Arrays(3, path=path)
        batch = data.batch(torch.tensor([4, 0, 9, 4]), CPU)
        rows = batch["label"].numpy()
        assert set(batch) == set(arrays)
        assert batch["label"].dtype == torch.int64
        assert batch["frames"].dtype == torch.float32
        assert torch.equal(batch["frames"], torch.from_numpy(arrays["frames"][rows]).float() / 255)
        assert torch.equal(batch["actions"], torch.from_numpy(arrays["actions"][rows]).float())
        assert torch.equal(batch["observations"], torch.from_numpy(arrays["observations"][rows]).float())
        assert torch.equal(batch["done"], torch.from_numpy(arrays["done"][rows]))
        assert rows[0] == rows[3] != rows[1]


def test_streams_say_what_can_be_read(tmp_path):
    data = Arrays(0, path=folder(tmp_path, content()))
    assert list(data.streams) == ["frames", "observations"]
    frames, observations = data.streams.values()
    assert (frames.maps, frames.width, frames.ticks, frames.actions) == (((3, 6, 5),), 0, (0, 1, 2, 3), 2)
    assert (observations.maps, observations.width, observations.grid, observations.steps) == ((), 7, (), 4)
    assert list(Arrays(0, path=str(tmp_path), main="observations").streams) == ["observations", "frames"]


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.float32, np.float64, np.int32, ">f4", ">u2", np.uint64])
def test_one_file_with_one_channel(tmp_path, kind):
    values = np.arange(6 * 2 * 3 * 4).reshape(6, 2, 3, 4).astype(kind)
    np.save(tmp_path / "video.npy", values)
    data = Arrays(0, path=str(tmp_path / "video.npy"), valid=0.0, test=0.0)
    assert data.streams["frames"].maps == ((1, 3, 4),)
    frames = data.batch(torch.arange(6), CPU)["frames"]
    scale = 255 if kind is np.uint8 else 1
    expected = torch.from_numpy(values.astype(np.float32)) / scale
    order = frames[:, 0, 0, 0, 0].argsort()
    assert torch.equal(frames[order][:, :, 0], expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.floats(0, 0.6), st.floats(0, 0.6), st.integers(0, 2**40))
def test_splits_share_nothing_and_leave_nothing_out(count, valid, test, seed):
    with tempfile.TemporaryDirectory() as path:
        np.save(Path(path) / "frames.npy", np.arange(count, dtype=np.float32)[:, None, None] + np.zeros((1, 2, 1)))
        try:
            data = Arrays(seed, path=path, valid=valid, test=test)
        except (ValueError, Mistake):
            assert valid + test >= 1 or round(count * valid) + round(count * test) + 2 >= count
            return
        seen = []
        for name, share in {"train": 1 - valid - test, "valid": valid, "test": test}.items():
            part = data.split(name)
            seen += part.batch(torch.arange(len(part)), CPU)["frames"][:, 0, 0].tolist()
            assert abs(len(part) - share * count) <= 2
            assert (len(part) > 0) == (name == "train" or share > 0)
        assert sorted(seen) == list(range(count))


def test_splits_are_shuffled_by_the_seed_alone(tmp_path):
    path = folder(tmp_path, content(40))
    whole = torch.arange(8)
    labels = [Arrays(seed, path=path).split("train").batch(whole, CPU)["label"].tolist() for seed in (0, 0, 1)]
    assert labels[0] == labels[1] != labels[2]
    assert labels[0] != sorted(labels[0])


def test_a_sample_does_not_depend_on_the_batch(tmp_path):
    data = Arrays(0, path=folder(tmp_path, content()))
    ids = torch.tensor([7, 1, 3])
    together = data.batch(ids, CPU)
    for row in range(3):
        for key, alone in data.batch(ids[row : row + 1], CPU).items():
            assert torch.equal(alone[0], together[key][row])


def test_it_travels_to_worker_processes_without_what_it_has_read(tmp_path, monkeypatch):
    arrays = content(2000)
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, **arrays)
    monkeypatch.chdir(tmp_path)
    data = Arrays(0, path="packed.npz").split("valid")
    before = data.batch(torch.arange(3), CPU)
    travelled = pickle.dumps(data)
    assert len(travelled) < 10_000
    monkeypatch.chdir("/")
    after = pickle.loads(travelled).batch(torch.arange(3), CPU)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_splits_share_what_was_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "packed.npz", **content())
    data = Arrays(0, path=str(tmp_path / "packed.npz"))
    data.split("valid").batch(torch.arange(1), CPU)
    assert "values" in vars(data.split("test").arrays["frames"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"label": np.arange(19)}, "arrays of one length are needed; there are actions 20, done 20, frames 20, label 19"),
        ({"frames": np.zeros((20, 4))}, r"frames is \(20, 4\); it must be"),
        ({"frames": np.zeros((20, 4, 1, 1, 1, 1))}, "it must be"),
        ({"actions": np.zeros((20, 4, 2))}, r"actions is \(20, 4, 2\); for 4 steps it must be \(20, 3, A\)"),
        ({"actions": np.zeros((20, 3))}, r"must be \(20, 3, A\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, why):
    with pytest.raises(Mistake, match=why) as caught:
        Arrays(0, path=folder(tmp_path, content() | change))
    assert str(tmp_path) in str(caught.value)


def test_what_cannot_be_split_or_found_is_refused(tmp_path):
    path = folder(tmp_path, content(2))
    with pytest.raises(Mistake, match=r"2 samples are too few to hold out valid 0\.1, test 0\.1"):
        Arrays(0, path=path)
    with pytest.raises(ValueError, match="nothing to train on"):
        Arrays(0, path=path, valid=0.5, test=0.5)
    with pytest.raises(
        Mistake, match="no array 'frame' among actions, done, frames, label, observations, did you mean 'frames'"
    ):
        Arrays(0, path=path, main="frame")
    with pytest.raises(Mistake, match="no split 'eval' among train, valid, test"):
        Arrays(0, path=path, test=0.0).split("eval")
    with pytest.raises(Mistake, match="there is no folder"):
        Arrays(0, path=str(tmp_path / "no" / "such"))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([np.savez, np.savez_compressed]), st.integers(0, 6000), st.integers(0, 255), st.booleans())
@pytest.mark.filterwarnings("ignore")
def test_damaged_archives_give_samples_or_a_mistake(save, place, byte, cut):
    """P45."""
    stream = io.BytesIO()
    save(stream, **content(4))
    damaged = bytearray(stream.getvalue())
    place %= len(damaged)
    damaged[place] = byte
    with tempfile.TemporaryDirectory() as path:
        file = Path(path) / "data.npz"
        file.write_bytes(damaged[:place] if cut else damaged)
        said = str(file)
        try:
            data = Arrays(0, path=str(file))
            for name in ("train", "valid", "test"):
                part = data.split(name)
                assert set(part.batch(torch.arange(len(part)), CPU)) >= {"frames"}
        except Mistake as mistake:
            said = str(mistake)
        assert str(file) in said
