"""What was recorded comes back to the bit; what a foreign file lacks is said in one message that names it."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Spec
from hjepa.errors import Mistake
from hjepa_control import recording
from hjepa_control.named import Named
from hjepa_control.recorded import Recorded
from hjepa_control.recording import main, record, walks
from hjepa_control.trajectories import Trajectories, stopped

h5py = pytest.importorskip("h5py")
CPU = torch.device("cpu")


def walked(path: Path, *said: str, episodes: int = 20, frames: int = 9) -> Path:
    file = path / "walks.h5"
    assert main([*(said or ("four_rooms", "distractors=1")), "--out", str(file), *numbers(episodes, frames)]) == 0
    return file


def numbers(episodes: int, frames: int) -> list[str]:
    return ["--episodes", str(episodes), "--frames", str(frames), "--seed", "3"]


def test_what_comes_back_is_what_was_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "TOGETHER", 7)
    file = walked(tmp_path)
    expected = Trajectories(3, of=Named("four_rooms", {"distractors": 1}), frames=9).batch(torch.arange(20), CPU)
    data = Recorded(0, file=str(file), frames=9, held_out=0.0)
    batch = data.batch(torch.arange(20), CPU)
    assert batch.keys() == expected.keys() and len(data) == 20
    rows = (batch["layout"][:, None] == expected["layout"]).all(-1) & (
        batch["position"][:, None, 0] == expected["position"][:, 0]
    ).all(-1)
    assert rows.sum(1).tolist() == [1] * 20
    for name, value in batch.items():
        assert torch.equal(value, expected[name][rows.int().argmax(1)]) and value.dtype == expected[name].dtype, name
    assert data.streams == {
        "frames": Spec(maps=((2, 65, 65),), ticks=tuple(range(9)), actions=2),
        "distractors": Spec(width=2, ticks=tuple(range(9)), actions=2),
        "position": Spec(width=2, ticks=tuple(range(9)), actions=2),
    }
    with h5py.File(file) as found:
        assert dict(found.attrs) == {"world": "four_rooms", "options": json.dumps({"distractors": 1}), "seed": 3}
        assert found["frames"].dtype == np.uint8 and found["frames"].chunks == (1, 9, 2, 65, 65)
    assert [path.name for path in tmp_path.iterdir()] == ["walks.h5"]


def test_what_is_said_of_each_step_comes_in_windows_as_the_steps_do(tmp_path: Path) -> None:
    data = Recorded(0, file=str(walked(tmp_path, "two_rooms")), frames=4, held_out=0.0)
    batch = data.batch(torch.arange(len(data)), CPU)
    assert len(data) == 20 * 6 and batch["stopped"].shape == (120, 4, 1) and batch["stopped"].dtype == torch.bool
    assert torch.equal(batch["stopped"][:, 1:], stopped(batch["position"], batch["actions"])[:, 1:])
    assert batch["stopped"][:, 1:].any()


# --- windows, in files that are small ---


def content(episodes: int = 10, frames: int = 8) -> dict[str, Any]:
    """Episodes whose every pixel, action and number says of which episode and step it is."""
    step = 10 * np.arange(episodes)[:, None] + np.arange(frames)
    return {
        "frames": (step[:, :, None, None, None] + np.zeros((1, 1, 1, 2, 2))).astype(np.uint8),
        "actions": step[:, :-1, None].astype(np.float64),
        "state": step[:, :, None].astype(">f4"),
        "touched": step % 2 == 0,
        "episodes/number": np.arange(episodes, dtype=np.int16),
    }


def stored(file: Path, arrays: dict[str, Any]) -> str:
    with h5py.File(file, "w") as into:
        for name, value in arrays.items():
            into[name] = value
    return str(file)


def test_windows_lie_within_their_episodes(tmp_path: Path) -> None:
    arrays = content() | {"episodes/lengths": np.array([8, 3, 5, 0, 8, 4, 8, 8, 2, 8])}
    data = Recorded(0, file=stored(tmp_path / "some.h5", arrays), frames=4, held_out=0.0)
    assert len(data) == 5 * 5 + 2 + 1
    batch = data.batch(torch.arange(len(data)), CPU)
    assert {name: tuple(value.shape[1:]) for name, value in batch.items()} == {
        "frames": (4, 1, 2, 2),
        "actions": (3, 1),
        "state": (4, 1),
        "touched": (4,),
        "number": (),
    }
    step = batch["state"][..., 0]
    assert torch.equal(step.diff(dim=1), torch.ones(28, 3)) and len(step.unique(dim=0)) == 28
    assert torch.equal((batch["frames"][..., 0, 0, 0] * 255).round(), step)
    assert torch.equal(batch["actions"][..., 0], step[:, :-1]) and torch.equal(batch["touched"], step % 2 == 0)
    assert torch.equal(batch["number"], (step[:, 0] // 10).long()) and batch["number"].dtype == torch.int64
    assert ((step[:, -1] % 10) < torch.tensor(arrays["episodes/lengths"])[batch["number"]]).all()
    assert list(data.streams) == ["frames", "state"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from([0.0, 0.1, 0.3, 0.45]), st.integers(1, 8))
def test_no_episode_is_in_two_splits(tmp_path_factory: pytest.TempPathFactory, seed: int, share: float, frames: int) -> None:
    file = tmp_path_factory.getbasetemp() / "shared.h5"
    if not file.exists():
        stored(file, content())
    data, seen = Recorded(seed, file=str(file), frames=frames, held_out=share), []
    for name in ("train", "valid", "test"):
        part = data.split(name)
        assert len(part) % (9 - frames) == 0 and (len(part) > 0) == (name == "train" or share > 0)
        if len(part):
            seen.append(set(part.batch(torch.arange(len(part)), CPU)["number"].tolist()))
            assert len(seen[-1]) * (9 - frames) == len(part)
    assert sum(map(len, seen)) == len(set().union(*seen)) == 10


def test_samples_are_their_ids_own_and_the_seeds(tmp_path: Path) -> None:
    file = stored(tmp_path / "some.h5", content())
    data, ids = Recorded(1, file=file, frames=3), torch.tensor([7, 0, 7])
    batch = data.batch(ids, CPU)
    assert all(torch.equal(value[1:2], data.batch(ids[1:2], CPU)[name]) for name, value in batch.items())
    assert torch.equal(batch["state"][0], batch["state"][2])
    firsts = [Recorded(seed, file=file, frames=3).batch(torch.arange(9), CPU)["state"][:, 0, 0].tolist() for seed in (1, 1, 2)]
    assert firsts[0] == firsts[1] != firsts[2] and firsts[0] != sorted(firsts[0])


def test_workers_read_what_the_process_reads_that_made_them(tmp_path: Path) -> None:
    data = Recorded(1, file=stored(tmp_path / "some.h5", content()), frames=3).split("valid")
    before = read(data, 0)
    with multiprocessing.get_context("fork").Pool(2) as workers:
        for number, state in enumerate(workers.map(partial(read, data), range(6))):
            assert torch.equal(state, read(data, number))
    assert torch.equal(read(pickle.loads(pickle.dumps(data)), 0), before)


def read(data: Recorded, number: int) -> Tensor:
    return data.batch(torch.tensor([number]), CPU)["state"]


# --- files that are wrong ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": None, "frame": np.zeros((10, 8))}, "there is no 'frames' in it, did you mean 'frame'.* state, touched"),
        ({"frames": np.zeros((10, 8, 3, 2, 2))}, r"frames is \(10, 8, 3, 2, 2\) of float64; it must be .* of uint8"),
        ({"frames": np.zeros((10, 8, 3), np.uint8)}, r"frames is \(10, 8, 3\) of uint8; it must be \(E, T, C, H, W\)"),
        ({"actions": np.zeros((10, 6, 2))}, r"actions is \(10, 6, 2\) of float64; beside .* it must be \(10, 7, A\)"),
        ({"state": np.zeros((10, 7, 2))}, r"state is \(10, 7, 2\) .* it must be \(10, 8, ...\)"),
        ({"number": np.zeros(10)}, r"number is \(10,\) .*; what holds for all of an episode belongs into the group 'episodes'"),
        ({"episodes/number": np.zeros(9)}, r"episodes/number is \(9,\) .* it must be \(10, ...\)"),
        ({"episodes/lengths": np.full(10, 9)}, "lengths are from 9 to 9, and there are 8 frames at most"),
        ({"episodes/lengths": np.full(10, 1.5)}, r"it must be \(10,\) of whole numbers"),
        ({"episodes/lengths": np.full(10, 3)}, "its longest episode has 3 frames, and windows of 4 are asked for"),
        ({"episodes/lengths": np.array([8, 8] + [0] * 8)}, "2 episodes are too few to hold out 0.1 of them twice"),
        ({"name": np.array([b"a"], dtype=object)}, "name holds object; numbers of up to 64 bits are read"),
        ({"deeper/state": np.zeros((10, 8, 1))}, "deeper is a group; only 'episodes' may be one"),
        ({"elsewhere": h5py.ExternalLink("/etc/other.h5", "frames")}, "elsewhere is a link to somewhere else"),
    ],
)
def test_a_foreign_file_is_one_message(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    if "name" in change:
        change = {"name": np.array(["a"] * 10, dtype=h5py.string_dtype())}
    arrays = {name: value for name, value in (content() | change).items() if value is not None}
    file = stored(tmp_path / "foreign.h5", arrays)
    with pytest.raises(Mistake, match=rf"foreign\.h5: .*{said}"):
        Recorded(0, file=file, frames=4)


def test_a_broken_file_is_one_message(tmp_path: Path) -> None:
    file = Path(stored(tmp_path / "broken.h5", content(episodes=60)))
    data, whole = Recorded(0, file=str(file), frames=4), file.read_bytes()
    for end in range(0, len(whole), len(whole) // 20):
        file.write_bytes(whole[:end])
        with pytest.raises(Mistake, match=r"broken\.h5: cannot be read as HDF5"):
            Recorded(0, file=str(file), frames=4)
        with pytest.raises(Mistake, match=r"broken\.h5: cannot be read as HDF5"):
            data.batch(torch.arange(3), CPU)
    for name, said in (("brokn.h5", "did you mean 'broken.h5'"), ("none/a.h5", "there is no such file")):
        with pytest.raises(Mistake, match=said):
            Recorded(0, file=str(tmp_path / name))
    with pytest.raises(ValueError, match="leave nothing to train on"):
        Recorded(0, file=str(file), held_out=0.5)


# --- recording ---


def test_a_recording_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Failing:
        def batch(self, ids: Tensor, device: torch.device) -> Any:
            if ids[0]:
                raise KeyboardInterrupt
            return walks("two_rooms", {}, 3, 0).batch(ids, device)

    with pytest.raises(KeyboardInterrupt):
        record(Failing(), tmp_path / "walks.h5", 100, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_never_replaced_and_equal_calls_write_equal_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = walked(tmp_path, "two_rooms", "door=[20, 30]", "rebound=0.1", episodes=3, frames=2)
    before, other = file.read_bytes(), tmp_path / "other"
    other.mkdir()
    assert main(["two_rooms", "--out", str(file), *numbers(3, 2)]) == 2
    assert "is there already" in capsys.readouterr().err and file.read_bytes() == before
    again = walked(other, "two_rooms", "door=[20, 30]", "rebound=0.1", episodes=3, frames=2)
    with h5py.File(file) as one, h5py.File(again) as two:
        for name in ("frames", "actions", "position", "episodes/layout"):
            assert np.array_equal(one[name], two[name])
        assert (one["episodes/layout"][:, 1] >= 20).all() and (one["episodes/layout"][:, 1] <= 30).all()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["two_room"], "unknown environment 'two_room', did you mean 'two_rooms'"),
        (["two_rooms", "wal=3"], "two_rooms has no option 'wal', did you mean 'wall'"),
        (["two_rooms", "wall"], "'wall' is no option; options are written key=value"),
        (["gymnasium"], "gymnasium needs the option 'id'"),
        (["two_rooms", "--frames", "1"], "--frames from 2 to 1024; written: 4, 1"),
        (["two_rooms", "--seed", "9" * 30], "--seed must be from 0 to 2^63 - 1; written: 999"),
        (["two_rooms", "--out", "/proc/a.h5"], "/proc/a.h5: cannot be written: "),
        (["two_rooms", "--out", "x" * 300], "cannot be written: "),
    ],
)
def test_what_is_asked_wrongly_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[str], why: str) -> None:
    assert main(["--out", str(tmp_path / "a.h5"), *numbers(4, 2), *said]) == 2
    assert why in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_library_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stored(tmp_path / "some.h5", content())
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    for asked in (lambda: Recorded(0, file=file), recording.library):
        refused(asked)


def refused(asked: Callable[[], Any]) -> None:
    with pytest.raises(Mistake, match=r"pip install 'hjepa\[hdf5\]'"):
        asked()


def test_others_worlds_are_recorded_by_someone_who_does_anything(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium")
    told = ["id=hjepa_control.gymnasium_ids:hjepa/TwoRooms-v0", "size=16", "steps=6"]
    file = walked(tmp_path, "gymnasium", *told, episodes=4, frames=10)
    data = Recorded(0, file=str(file), frames=7, held_out=0.0)
    batch = data.batch(torch.arange(4), CPU)
    assert len(data) == 4 and batch["frames"].shape == (4, 7, 3, 16, 16) and batch["actions"].shape == (4, 6, 2)
    assert (batch["actions"].abs() <= 1).all()
    kept = (batch["actions"].diff(dim=1) == 0).all(-1).float().mean()
    assert 0.4 < kept < 1 and (batch["frames"][:, 0] != batch["frames"][:, -1]).flatten(1).any(1).all()
    with h5py.File(file) as found:
        assert found["episodes/lengths"][:].tolist() == [7] * 4
