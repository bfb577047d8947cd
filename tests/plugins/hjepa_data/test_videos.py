from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hjepa.errors import Mistake
from hjepa.keys import SourceKeys
from hjepa.loading import Source, batches
from hjepa_data import films
from hjepa_data.manifest import Unreadable
from hjepa_data.videos import Videos

av = pytest.importorskip("av")

CPU = torch.device("cpu")
SHADE = 6
"""How much brighter each frame is than the one before it, so that a frame says its number."""
KINDS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4", "mov": "mpeg4"}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def film(path: Path, count: int = 40, codec: str = "", between: int = 2) -> Path:
    """`count` frames of one shade each, with key frames every 12 and `between` frames that look both ways."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or KINDS[path.suffix[1:]], rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, "yuv420p", 12
        stream.bit_rate = 4_000_000
        if stream.codec_context.name != "libvpx":
            stream.codec_context.max_b_frames = between
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), number * SHADE, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(frames: torch.Tensor) -> list[int]:
    """Which frames these are, by their shades."""
    scale = 255 if frames.is_floating_point() else 1
    return (frames.float() * scale / SHADE).mean((-3, -2, -1)).round().int().tolist()


@pytest.mark.parametrize("ending", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, 30), step=st.integers(1, 3), count=st.integers(1, 4))
def test_the_frames_that_are_asked_for_are_read(tmp_path, ending, first, step, count):
    path = tmp_path / f"one.{ending}"
    if not path.exists():
        film(path)
    assert films.look(path) == 40
    wanted = range(first, first + (count - 1) * step + 1, step)
    found = films.read(path, wanted, 8, 3)
    assert found.shape == (count, 3, 8, 8) and found.dtype == torch.uint8
    assert numbers(found) == list(wanted)


def test_only_what_is_needed_is_decoded(tmp_path, monkeypatch):
    path, decoded, at = film(tmp_path / "one.mp4", between=0), [], films._at
    monkeypatch.setattr(films, "_at", lambda frames, times: at((decoded.append(one) or one for one in frames), times))
    assert numbers(films.read(path, [26, 28], 8, 1)) == [26, 28]
    assert len(decoded) <= 28 - 24 + 2


BROKEN: dict[str, Callable[[Path, bytes], Any]] = {
    "cut.mp4": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "empty.mp4": lambda path, whole: path.write_bytes(b""),
    "text.webm": lambda path, whole: path.write_text("no video\n" * 99),
    "list.mp4": lambda path, whole: path.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
    ),
    "sound.mp4": lambda path, whole: sound(path),
    "folder.avi": lambda path, whole: path.mkdir(),
    "header.mkv": lambda path, whole: path.write_bytes(bytes(64) + whole[64:]),
    "picture.mp4": lambda path, whole: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99)),
    "link.mov": lambda path, whole: path.symlink_to(path.name),
}


def folder(path: Path, good: int) -> None:
    for number in range(good):
        film(path / ("run", "walk")[number % 2] / f"{number:02}.{list(KINDS)[number % 5]}", 20 + number)


def test_what_is_broken_is_listed(tmp_path, caplog):
    """P45, P46."""
    folder(tmp_path, 10)
    whole = (tmp_path / "run" / "00.mp4").read_bytes()
    for name, breaks in BROKEN.items():
        breaks(tmp_path / "run" / name, whole)
    film(tmp_path / "run" / "short.mp4", 5)
    data = Videos(0, path=str(tmp_path), frames=4, frame_step=3, size=8, bad=0.6)
    bad = {path.removeprefix("run/"): reason for path, reason in data.manifest.bad.items()}
    assert bad.keys() == BROKEN.keys() | {"short.mp4"} and len(data.manifest.good) == 10
    assert "1 of 11 videos are too short for clips of 10 frames: run/short.mp4" in caplog.text
    assert bad["short.mp4"] == "has 5 frames; a clip needs 10" and bad["sound.mp4"] == "has no video stream"
    assert all("Invalid data" in bad[name] for name in ("cut.mp4", "text.webm", "header.mkv", "list.mp4"))
    assert "Invalid argument" in bad["picture.mp4"]  # of a format that is never opened
    with pytest.raises(Mistake, match=r"9 of 20 videos cannot be read, .*run/cut\.mp4"):
        Videos(0, path=str(tmp_path), frames=4, frame_step=3, size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ending=st.sampled_from(sorted(KINDS)))
def test_any_bytes_are_a_clip_or_one_error(tmp_path, data, ending):
    """P45."""
    source, path = tmp_path / f"whole.{ending}", tmp_path / f"any.{ending}"
    whole = bytearray((source if source.exists() else film(source, 14)).read_bytes())
    for _ in range(data.draw(st.integers(0, 12))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) // 2, len(whole) // 5]))])
    with suppress(Unreadable):
        count = films.look(path)
        assert films.read(path, [0, count - 1] if count > 1 else [0], 8, 3).shape[1:] == (3, 8, 8)


def test_clips_begin_at_random_in_training_and_in_the_middle_else(tmp_path):
    film(tmp_path / "train" / "a.mp4")
    film(tmp_path / "valid" / "b.mp4")
    made = {"path": str(tmp_path), "frames": 2, "frame_step": 3, "size": 8, "test": 0.0}
    data = Videos(0, clips=3, **made)
    assert len(data) == len(data.split("valid")) == 3
    first = torch.tensor([numbers(clip)[0] for clip in data.batch(torch.arange(3), CPU)["frames"]])
    assert (first // 12).tolist() == [0, 1, 2]  # 37 places, in three stretches
    others = [Videos(seed, clips=3, **made).batch(torch.arange(3), CPU)["frames"] for seed in (0, 1, 2)]
    assert torch.equal(others[0], data.batch(torch.arange(3), CPU)["frames"])
    assert not torch.equal(others[0], others[1]) or not torch.equal(others[0], others[2])
    held = [Videos(seed, **made).split("valid").batch(torch.tensor([0]), CPU)["frames"][0] for seed in (0, 1)]
    assert numbers(held[0]) == [18, 21] == numbers(held[1])


def test_batches_are_the_same_with_any_number_of_workers(tmp_path):
    """P48."""
    folder(tmp_path, 10)
    data = Videos(3, path=str(tmp_path), frames=4, frame_step=2, clips=2, size=8, valid=0.0, test=0.0)
    assert data.streams["frames"].maps == ((3, 8, 8),) and data.streams["frames"].ticks == (0, 1, 2, 3)
    one = {"a": Source("a", SourceKeys(batch=4), 0, data, data.split("train"), [])}
    runs = [[found["a"] for _, found in batches(one, range(5), workers, CPU)] for workers in (0, 2)]
    for mine, other in zip(*runs, strict=True):
        assert mine["frames"].shape == (4, 4, 3, 8, 8)
        assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_video_that_breaks_later_is_replaced_by_the_next_and_listed(tmp_path, caplog):
    folder(tmp_path, 6)
    data = Videos(0, path=str(tmp_path), frames=3, frame_step=2, size=8, valid=0.0, test=0.0)
    whole, paths = data.batch(torch.arange(6), CPU), data.folder.splits["train"]
    broken = bytearray((tmp_path / paths[2]).read_bytes())
    broken[100 : len(broken) - 50] = bytes(len(broken) - 150)
    (tmp_path / paths[2]).write_bytes(broken)
    found = data.batch(torch.tensor([1, 2]), CPU)
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"{paths[2]} can no longer be read (" in told and f"): {paths[3]} stands for it" in told
    assert torch.equal(found["frames"], whole["frames"][[1, 3]]) and torch.equal(found["label"], whole["label"][[1, 3]])
    assert data.folder.lost.keys() == {paths[2]}


def test_videos_that_are_all_too_short(tmp_path):
    film(tmp_path / "a.mp4", 12)
    with pytest.raises(Mistake, match=r"a clip needs 61 frames, \(frames - 1\) \* frame_step \+ 1; the longest video has 12"):
        Videos(0, path=str(tmp_path))


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Mistake, match=r"pip install 'hjepa\[video\]'"):
        Videos(0, path=str(tmp_path))
