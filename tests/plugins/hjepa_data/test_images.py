from __future__ import annotations

import io
import json
import os
import pickle
import random
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hjepa.errors import Mistake
from hjepa.keys import SourceKeys
from hjepa.loading import Source, batches
from hjepa_data import pictures
from hjepa_data.images import Images
from hjepa_data.manifest import Unreadable

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def image(number: int, width: int = 12, height: int = 10) -> Image.Image:
    """Of one colour, which says its number; with noise, so that no compression makes it tiny."""
    draw = np.random.default_rng(number)
    pixels = np.full((height, width, 3), [number % 200, number // 200 * 20, 100], np.uint8)
    return Image.fromarray(pixels + draw.integers(0, 8, pixels.shape, dtype=np.uint8))


def encoded(number: int, kind: str = "PNG", **options: int) -> bytes:
    stream = io.BytesIO()
    image(number, **options).save(stream, kind)
    return stream.getvalue()


def bomb(side: int) -> bytes:
    """The header of a PNG of side x side pixels."""
    data = bytearray(encoded(0))
    data[16:24] = side.to_bytes(4) + side.to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


def zeroed(data: bytes, first: float, last: float) -> bytes:
    start, stop = round(len(data) * first), round(len(data) * last)
    return data[:start] + bytes(stop - start) + data[stop:]


def grey_floats() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(stream, "TIFF")
    return stream.getvalue()


BROKEN = {
    "cut.png": lambda path: path.write_bytes(encoded(1)[:200]),
    "cut.jpg": lambda path: path.write_bytes(encoded(1, "JPEG", width=64, height=64)[:600]),
    "empty.png": lambda path: path.write_bytes(b""),
    "text.jpg": lambda path: path.write_text("this is no picture at all\n" * 20),
    "middle.png": lambda path: path.write_bytes(zeroed(encoded(1), 0.4, 0.6)),
    "header.png": lambda path: path.write_bytes(zeroed(encoded(1), 0.0, 0.05)),
    "bomb.png": lambda path: path.write_bytes(bomb(12_000)),
    "atomic.png": lambda path: path.write_bytes(bomb(40_000)),
    "folder.png": lambda path: path.mkdir(),
    "link.png": lambda path: path.symlink_to(path.name),
    "nowhere.png": lambda path: path.symlink_to("does-not-exist.png"),
    "pipe.png": lambda path: os.mkfifo(path),
    "script.png": lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"),
    "floats.tiff": lambda path: path.write_bytes(grey_floats()),
    "archive.webp": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 3),
}


def folder(path: Path, good: int, bad: int = 0) -> set[str]:
    """Two classes of good PNG and JPEG images, and among them bad ones of each way in turn: their paths."""
    for kind in ("cat", "dog"):
        (path / kind).mkdir(parents=True, exist_ok=True)
    for number in range(good):
        ending = ("png", "jpg")[number % 3 == 0]
        data = encoded(number, {"png": "PNG", "jpg": "JPEG"}[ending])
        (path / ("cat", "dog")[number % 2] / f"{number:04}.{ending}").write_bytes(data)
    ways, paths = list(BROKEN.items()), set()
    for number in range(bad):
        name, breaks = ways[number % len(ways)]
        target = path / ("cat", "dog")[number % 2] / f"{number * 9:04}-{name}"
        breaks(target)
        paths.add(target.relative_to(path).as_posix())
    return paths


def source(data: Images) -> Source:
    return Source("a", SourceKeys(batch=24), 0, data, data.split("train"), [])


def seen(data: Images, workers: int, steps: range) -> list[dict[str, torch.Tensor]]:
    return [found["a"] for _, found in batches({"a": source(data)}, steps, workers, CPU)]


def test_a_thousand_files_of_which_a_hundred_are_broken(tmp_path):
    """P46, P48: exactly the bad ones are listed, each with a reason; the others come in one order, with any number of workers."""
    bad = folder(tmp_path, 900, 100)
    data = Images(0, path=str(tmp_path), size=8)
    assert data.manifest.bad.keys() == bad and all(data.manifest.bad.values())
    assert sum(len(paths) for paths in data.folder.splits.values()) == len(data.manifest.good) == 900
    assert set(data.manifest.good) == {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/????.???")}
    filtered = tmp_path / "filtered"
    folder(filtered, 900)
    alone = Images(0, path=str(filtered), size=8)
    runs = [seen(data, 0, range(40)), seen(data, 2, range(40)), seen(alone, 0, range(40)), seen(data, 1, range(25, 40))]
    for step in range(40):
        for run in (runs[1][step], runs[2][step], *([runs[3][step - 25]] if step >= 25 else [])):
            assert all(torch.equal(run[key], runs[0][step][key]) for key in ("ids", "label", "frames"))
    epoch = torch.cat([batch["ids"] for batch in runs[0]])[: len(data)]
    assert sorted(epoch.tolist()) == list(range(len(data))) and not data.folder.lost


def test_every_reason_says_what_is_wrong(tmp_path):
    folder(tmp_path, 60, len(BROKEN))
    reasons = {path.partition("-")[2]: said for path, said in Images(0, path=str(tmp_path), size=8).manifest.bad.items()}
    assert reasons["empty.png"] == "is empty" and reasons["folder.png"] == "is a folder" and reasons["pipe.png"] == "is no file"
    assert all(
        reasons[name] == "does not begin like an image" for name in ("text.jpg", "header.png", "archive.webp", "script.png")
    )
    assert all("pixels are too many" in reasons[name] for name in ("bomb.png", "atomic.png"))
    assert "12000 x 12000" in reasons["bomb.png"] and "mode F" in reasons["floats.tiff"]
    assert "No such file" in reasons["nowhere.png"] and "symbolic links" in reasons["link.png"]
    assert all("runcated" in reasons[name] for name in ("cut.png", "cut.jpg")) and reasons["middle.png"]
    assert not any(str(tmp_path) in said for said in reasons.values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_an_image_or_one_error(tmp_path, data):
    """P45."""
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"]))
    whole = bytearray(encoded(3, kind))
    for _ in range(data.draw(st.integers(0, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "any.png"
    path.write_bytes(data.draw(st.sampled_from([bytes(whole), bytes(whole[: data.draw(st.integers(0, len(whole)))])])))
    with suppress(Unreadable):
        assert pictures.look(path) == 1
        assert pictures.read(path, 8, 3).shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_rgb(tmp_path, mode, channels):
    kind, ending = ("JPEG", "jpg") if mode in ("CMYK", "YCbCr") else ("PNG", "png")
    grey = np.full((6, 6), 200, np.uint8)
    made = (
        Image.fromarray(grey.astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(grey).convert("RGB").convert(mode, palette=1)
    )
    made.save(tmp_path / f"one.{ending}", kind)
    found = pictures.read(tmp_path / f"one.{ending}", 4, channels)
    assert found.shape == (channels, 4, 4) and found.dtype == torch.uint8
    expected = 255 if mode == "1" else 200
    assert (found.float() - expected).abs().max() <= 3 or mode == "1"


def test_the_middle_is_cut_out_upright_and_a_long_strip_takes_no_room(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = [255, 0, 0]
    pixels[:10, 20:40] = [0, 255, 0]
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[::-1, ::-1].copy()).save(tmp_path / "b.png", exif=exif)
    for name in ("a.png", "b.png"):
        found = pictures.read(tmp_path / name, 10, 3)
        assert (found[1, :4, 1:-1] > 250).all() and (found[0, 6:, 1:-1] > 250).all() and (found[2] == 0).all()
    Image.new("L", (50_000, 2), 77).save(tmp_path / "strip.png")
    assert (pictures.read(tmp_path / "strip.png", 32, 1) == 77).all()


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (200, 100, 0)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (pictures.read(tmp_path / "a.gif", 8, 3)[0] == 200).all()


# --- splits and classes -----------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_do_not_move(tmp_path):
    """P47: whatever the seed, the order of listing, and the files that are added."""
    folder(tmp_path / "a", 300)
    one = Images(0, path=str(tmp_path / "a"), size=8, valid=0.2, test=0.3).folder.splits
    assert sum(map(len, one.values())) == len(set().union(*one.values())) == 300
    assert abs(len(one["valid"]) - 60) < 30 and abs(len(one["test"]) - 90) < 35
    listing = os.listdir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "listdir", lambda path: random.Random(3).sample(listing(path), len(listing(path))))
        assert Images(7, path=str(tmp_path / "a"), size=8, valid=0.2, test=0.3).folder.splits == one
    folder(tmp_path / "a", 400)
    more = Images(0, path=str(tmp_path / "a"), size=8, valid=0.2, test=0.3).folder.splits
    assert all(set(one[name]) <= set(more[name]) for name in one)


def test_folders_that_are_called_like_splits_are_splits(tmp_path):
    for name, count in (("train", 40), ("val", 10)):
        folder(tmp_path / name, count)
    data = Images(0, path=str(tmp_path), size=8, test=0.25)
    assert data.classes == ("cat", "dog") and len(data.split("valid")) == 10
    assert all(path.startswith("val/") for path in data.folder.splits["valid"])
    assert 2 < len(data.split("test")) < 20 and len(data) + len(data.split("test")) == 40
    assert all(path.startswith("train/") for path in data.folder.splits["test"])
    folder(tmp_path / "bus", 10)
    assert Images(0, path=str(tmp_path), size=8).classes == ("bus", "train", "val")


def test_a_label_is_the_uppermost_folder(tmp_path):
    folder(tmp_path / "deep", 6)
    (tmp_path / "alone.png").write_bytes(encoded(1))
    data = Images(0, path=str(tmp_path), size=8, valid=0.0, test=0.0)
    assert data.classes == (".", "deep")
    labels = data.batch(torch.arange(7), CPU)["label"].tolist()
    assert labels == [int(path != "alone.png") for path in data.folder.splits["train"]]


def test_the_first_ids_are_of_all_classes(tmp_path):
    """Who looks at the first samples of a split sees what the others are like."""
    folder(tmp_path, 200)
    data = Images(0, path=str(tmp_path), size=8)
    assert 5 < data.batch(torch.arange(30), CPU)["label"].sum() < 25


def test_links_are_followed_but_not_in_circles(tmp_path):
    folder(tmp_path / "elsewhere", 4)
    root = tmp_path / "root"
    root.mkdir()
    (root / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    found = Images(0, path=str(root), size=8).manifest
    assert len(found.good) == 4 and list(found.bad) == ["there/back"]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_pure_function_of_its_ids(tmp_path):
    folder(tmp_path, 20)
    data = Images(0, path=str(tmp_path), size=6, valid=0.0, test=0.0)
    batch = data.batch(torch.tensor([3, 11, 3]), CPU)
    assert batch["frames"].shape == (3, 1, 3, 6, 6) and batch["frames"].dtype == torch.float32
    assert data.streams["frames"].maps == ((3, 6, 6),) and 0 < batch["frames"].max() <= 1
    again = pickle.loads(pickle.dumps(data)).batch(torch.tensor([3]), CPU)
    assert torch.equal(batch["frames"][0], batch["frames"][2]) and torch.equal(batch["frames"][:1], again["frames"])
    expected = torch.from_numpy(np.array(Image.open(tmp_path / data.folder.splits["train"][3]))).float().mean((0, 1)) / 255
    torch.testing.assert_close(batch["frames"][0, 0].mean((1, 2)), expected, atol=0.02, rtol=0)


def test_a_file_that_fails_later_is_replaced_by_the_next_and_listed(tmp_path, caplog):
    folder(tmp_path, 20)
    data = Images(0, path=str(tmp_path), size=8, valid=0.0, test=0.0)
    whole, paths = data.batch(torch.arange(20), CPU), data.folder.splits["train"]
    (tmp_path / paths[4]).unlink()
    (tmp_path / paths[5]).write_bytes(b"broken since then")
    (tmp_path / paths[19]).write_bytes(b"")
    found = data.batch(torch.tensor([3, 4, 5, 19]), CPU)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3 and all("can no longer be read" in line for line in told) and f"{paths[6]} stands for it" in told[0]
    expected = torch.tensor([3, 6, 6, 0])
    assert torch.equal(found["frames"], whole["frames"][expected]) and torch.equal(found["label"], whole["label"][expected])
    assert data.folder.lost.keys() == {paths[4], paths[5], paths[19]} and data.folder.lost[paths[19]] == "is empty"
    assert torch.equal(data.batch(torch.tensor([4]), CPU)["frames"], whole["frames"][6:7])
    assert len(caplog.records) == 3  # each is told of once
    for path in paths:
        (tmp_path / path).unlink(missing_ok=True)
    with pytest.raises(Mistake, match="none of the 20 files of the split 'train' can be read any more"):
        data.batch(torch.tensor([0]), CPU)


# --- what a person is told --------------------------------------------------------------------------------------------


def test_more_than_a_share_of_bad_files_is_a_mistake_that_names_some(tmp_path):
    folder(tmp_path, 20, 6)
    with pytest.raises(Mistake, match=r"6 of 26 images cannot be read, more than the share of 0\.2 .*0000-cut\.png \(.*2 more"):
        Images(0, path=str(tmp_path), size=8)
    assert len(Images(0, path=str(tmp_path), size=8, bad=0.3).manifest.bad) == 6


def test_what_is_left_out_is_told_once_and_all_of_it_is_in_a_file(tmp_path, caplog):
    bad = folder(tmp_path, 60, 6)
    found = [Images(0, path=str(tmp_path), size=8).manifest for _ in "ab"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "6 of 66 images cannot be read: cat/0000-cut.png (" in told and "and 2 more" in told
    listing = json.loads(Path(told.partition("all of them: ")[2].rstrip(")")).read_text())["bad"]
    assert listing.keys() == bad and listing == found[0].bad == found[1].bad


def test_what_may_not_be_read_is_listed(tmp_path, monkeypatch):
    folder(tmp_path, 12)
    (tmp_path / "secret").mkdir()
    opens, listing = Image.open, os.listdir

    def forbidden(function):
        def called(path, *rest, **options):
            if Path(path).name in ("secret", "0005.png"):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *rest, **options)

        return called

    monkeypatch.setattr(Image, "open", forbidden(opens))
    monkeypatch.setattr(os, "listdir", forbidden(listing))
    found = Images(0, path=str(tmp_path), size=8).manifest
    assert found.bad == dict.fromkeys(("dog/0005.png", "secret"), "PermissionError: Permission denied")


def test_a_name_that_is_no_text_is_listed(tmp_path):
    folder(tmp_path, 12)
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(1))
    found = Images(0, path=str(tmp_path), size=8).manifest
    assert found.bad == {r"caf\udce9.png": "its name is not UTF-8"}


def test_other_files_are_listed_and_not_held_against_the_folder(tmp_path):
    folder(tmp_path, 5)
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("a caption")
    (tmp_path / ".hidden.png").write_text("")
    found = Images(0, path=str(tmp_path), size=8).manifest
    assert len(found.bad) == 30 and "its name does not end in .png" in found.bad["7.txt"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], r"there are no images in it that can be read$"),
        (["a.heic", "b.heic"], r"no images .*; 2 other files are there, and their names do not end in \.png"),
        (["a.png"], r"no images .*what cannot be read: a\.png \(does not begin like an image\)"),
    ],
)
def test_a_folder_without_images(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text("words")
    with pytest.raises(Mistake, match=said):
        Images(0, path=str(tmp_path))


def test_no_folder_and_shares_that_leave_nothing(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(Mistake, match="there is no such folder, did you mean 'pictures'"):
        Images(0, path=str(tmp_path / "picturs"))
    folder(tmp_path, 3)
    with pytest.raises(ValueError, match="leave nothing to train on"):
        Images(0, path=str(tmp_path), valid=0.5, test=0.5)


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_what_was_good_is_not_looked_at_again_until_it_changes(tmp_path, monkeypatch):
    folder(tmp_path, 12, 2)
    first = Images(0, path=str(tmp_path), size=8).manifest
    looked, look = [], pictures.look
    monkeypatch.setattr(pictures, "look", lambda path: (looked.append(path.name), look(path))[1])
    assert Images(0, path=str(tmp_path), size=8).manifest == first
    assert sorted(looked) == ["0000-cut.png", "0009-cut.jpg"]
    changed = tmp_path / next(iter(first.good))
    changed.write_bytes(b"other bytes")
    assert Images(0, path=str(tmp_path), size=8, bad=0.5).manifest.bad.keys() == {*first.bad, next(iter(first.good))}


@pytest.mark.parametrize("content", ["", "[1, 2]", "not json"])
def test_a_cache_that_is_broken_or_cannot_be_written_only_costs_time(tmp_path, monkeypatch, content):
    folder(tmp_path / "images", 4)
    first = Images(0, path=str(tmp_path / "images"), size=8).manifest
    (kept,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json")
    kept.write_text(content)
    assert Images(0, path=str(tmp_path / "images"), size=8).manifest == first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Images(0, path=str(tmp_path / "images"), size=8).manifest == first
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"cat", "dog"}
