"""Files of flow as others write them, whole and broken."""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hjepa.errors import Mistake
from hjepa_data import flow_formats
from hjepa_data.flow_files import FlowFiles
from hjepa_data.manifest import Unreadable

CPU = torch.device("cpu")
HEIGHT, WIDTH = 10, 14


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def field(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W, 2): quarters of pixels, up to 4, as both formats keep them exactly."""
    return np.random.default_rng(number).integers(-16, 17, (height, width, 2)) / 4


def flo(values: np.ndarray, magic: float = 202021.25) -> bytes:
    height, width = values.shape[:2]
    return struct.pack("<fii", magic, width, height) + values.astype("<f4").tobytes()


def png16(values: np.ndarray, known: np.ndarray) -> bytes:
    stored = np.concatenate([values * 64 + 2**15, known[..., None]], axis=2).astype(np.uint16)
    return cv2.imencode(".png", stored[..., ::-1])[1].tobytes()


def picture(number: int, kind: str = "PNG", height: int = HEIGHT, width: int = WIDTH) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def grey(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((255 * values).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


# --- formats ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 99), st.integers(1, 7), st.integers(1, 7))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, number: int, height: int, width: int) -> None:
    folder, values = tmp_path_factory.mktemp("flow"), field(number, height, width)
    known = np.random.default_rng(number).integers(0, 2, (height, width))
    wanted = torch.from_numpy(values).permute(2, 0, 1).float()
    found, there = flow_formats.flo(put(folder / "a.flo", flo(values)))
    assert torch.equal(found, wanted) and there.all()
    found, there = flow_formats.kitti(put(folder / "a.png", png16(values, known)))
    assert torch.equal(there, torch.from_numpy(known > 0)) and torch.equal(found, wanted * there)


def test_opencv_reads_and_writes_the_same_flo(tmp_path: Path) -> None:
    values = field(3).astype(np.float32)
    assert cv2.writeOpticalFlow(str(tmp_path / "a.flo"), values) and (tmp_path / "a.flo").read_bytes() == flo(values)


@pytest.mark.parametrize("unknown", [1e10, -2e9, np.nan, np.inf])
def test_unknown_flow_is_no_number_to_learn_from(tmp_path: Path, unknown: float) -> None:
    values = field(0)
    values[2, 3, 1] = unknown
    found, known = flow_formats.flo(put(tmp_path / "a.flo", flo(values)))
    assert (~known).nonzero().tolist() == [[2, 3]] and found[:, 2, 3].tolist() == [0, 0] and torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (flo(field(0))[:11], "has 11 bytes, and the header"),
        (flo(field(0), magic=1.5), r"begins with 1.5, a .flo with 202021.25"),
        (flo(field(0))[:-1], r"has 1131 bytes; 14 x 10 pixels need 1132"),
        (flo(field(0)) + b"x", "has 1133 bytes"),
        (struct.pack("<fii", 202021.25, -4, 5), "says that it is -4 x 5"),
        (struct.pack("<fii", 202021.25, 2**30, 2**30), "too many"),
        (struct.pack(">fii", 202021.25, 14, 10) + bytes(1120), "begins with"),
    ],
)
def test_a_broken_flo_says_why(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        flow_formats.flo(put(tmp_path / "a.flo", data))


def test_a_broken_png_says_why(tmp_path: Path) -> None:
    whole = png16(field(0, 80, 90), np.ones((80, 90)))
    for data, reason in (
        (whole[: len(whole) // 2], "SyntaxError|OSError|Truncated|trunc"),
        (whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], "checksum|broken"),
        (picture(0), "is no PNG of three channels of 16 bits"),
        (grey(np.ones((4, 4))), "is no PNG of three channels of 16 bits"),
        (b"no picture at all", "does not begin like an image"),
    ):
        with pytest.raises(Unreadable, match=reason):
            flow_formats.kitti(put(tmp_path / "a.png", data))


# --- data sets --------------------------------------------------------------------------------------------------------


def chairs(root: Path, count: int = 3) -> Path:
    for number in range(count):
        name = root / "data" / f"{number:05d}"
        put(Path(f"{name}_flow.flo"), flo(field(number)))
        for frame in (1, 2):
            put(Path(f"{name}_img{frame}.ppm"), picture(2 * number + frame, "PPM"))
    return root / "data"


def sintel(root: Path, scenes: tuple[str, ...] = ("alley_1", "cave_2"), frames: int = 3) -> Path:
    for place, scene in enumerate(scenes):
        for frame in range(1, frames + 1):
            put(root / "clean" / scene / f"frame_{frame:04d}.png", picture(10 * place + frame))
            if frame < frames:
                put(root / "flow" / scene / f"frame_{frame:04d}.flo", flo(field(10 * place + frame)))
                hidden = np.random.default_rng(10 * place + frame).integers(0, 2, (HEIGHT, WIDTH))
                put(root / "occlusions" / scene / f"frame_{frame:04d}.png", grey(hidden))
    return root / "clean"


def kitti(root: Path, count: int = 3) -> Path:
    for number in range(count):
        draw = np.random.default_rng(number)
        known = draw.integers(0, 2, (HEIGHT, WIDTH))
        for folder, there in (("flow_occ", known), ("flow_noc", known * draw.integers(0, 2, known.shape))):
            put(root / folder / f"{number:06d}_10.png", png16(field(number), there))
        for frame in (10, 11):
            put(root / "image_2" / f"{number:06d}_{frame}.png", picture(2 * number + frame))
    return root / "image_2"


WRITTEN: dict[str, Callable[[Path], Path]] = {"chairs": chairs, "sintel": sintel, "kitti": kitti}


def opened(layout: str, root: Path, height: int = HEIGHT, width: int = WIDTH, **options: object) -> FlowFiles:
    shares = {"valid": 0.0, "test": 0.0} | options
    return FlowFiles(0, layout=layout, path=str(WRITTEN[layout](root)), height=height, width=width, **shares)


def outside(values: np.ndarray) -> torch.Tensor:
    height, width = values.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    x, y = columns + values[..., 0], rows + values[..., 1]
    return torch.from_numpy((x < -0.5) | (x > width - 0.5) | (y < -0.5) | (y > height - 0.5))


@pytest.mark.parametrize("layout", WRITTEN)
def test_every_layout_gives_frames_flow_and_what_is_known(layout: str, tmp_path: Path) -> None:
    data = opened(layout, tmp_path)
    batch = data.batch(torch.arange(len(data)), CPU)
    count = {"chairs": 3, "sintel": 4, "kitti": 3}[layout]
    assert len(data) == count and not {path: why for path, why in data.manifest.bad.items() if "does not end" not in why}
    shapes = {name: tuple(values.shape[1:]) for name, values in batch.items()}
    assert shapes.pop("occluded", (1, HEIGHT, WIDTH)) == (1, HEIGHT, WIDTH)
    assert shapes == {"frames": (2, 3, HEIGHT, WIDTH), "flow": (1, 2, HEIGHT, WIDTH), "known": (1, HEIGHT, WIDTH)}
    assert ("occluded" in batch) == (layout != "chairs") and batch["frames"].max() <= 1
    for row, path in enumerate(data.folder.splits["train"]):
        stem = path.split("/")[-1]
        number = {"chairs": stem[:5], "kitti": stem[:6]}.get(layout) or (10 if "cave" in path else 0) + int(stem[6:10])
        values = field(int(number))
        frames = {"chairs": (1, 2), "kitti": (10, 11), "sintel": (0, 1)}[layout]
        offset = int(number) if layout == "sintel" else 2 * int(number)
        first = np.asarray(Image.open(io.BytesIO(picture(offset + frames[0]))))
        second = np.asarray(Image.open(io.BytesIO(picture(offset + frames[1]))))
        shown = batch["frames"][row].mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        assert (shown[0] == first).all() and (shown[1] == second).all()
        known = batch["known"][row, 0]
        assert torch.equal(batch["flow"][row, 0], torch.from_numpy(values).permute(2, 0, 1).float() * known)


def test_what_is_occluded_or_leaves_the_picture(tmp_path: Path) -> None:
    data = opened("sintel", tmp_path / "sintel")
    batch = data.batch(torch.arange(4), CPU)
    for row, path in enumerate(data.folder.splits["train"]):
        number = (10 if "cave" in path else 0) + int(path[-8:-4])
        hidden = torch.from_numpy(np.random.default_rng(number).integers(0, 2, (HEIGHT, WIDTH)) > 0)
        assert torch.equal(batch["occluded"][row, 0], hidden | outside(field(number)))
    data = opened("kitti", tmp_path / "kitti")
    batch = data.batch(torch.arange(3), CPU)
    for row, path in enumerate(data.folder.splits["train"]):
        draw = np.random.default_rng(int(path[:6]))
        known, seen = (torch.from_numpy(draw.integers(0, 2, (HEIGHT, WIDTH)) > 0) for _ in range(2))
        wanted = known & (~seen | outside(field(int(path[:6]))))
        assert torch.equal(batch["known"][row, 0], known) and torch.equal(batch["occluded"][row, 0], wanted)


def test_the_middle_is_cut_out_of_everything_alike(tmp_path: Path) -> None:
    whole, cut = opened("sintel", tmp_path), opened("sintel", tmp_path, height=6, width=8)
    all_of_it, middle = (data.batch(torch.arange(4), CPU) for data in (whole, cut))
    for name in ("frames", "flow", "known"):
        assert torch.equal(middle[name], all_of_it[name][..., 2:8, 3:11])
    assert (middle["occluded"] >= all_of_it["occluded"][..., 2:8, 3:11]).all()
    assert torch.equal(whole.split("train").batch(torch.tensor([2, 0]), CPU)["flow"], all_of_it["flow"][[2, 0]])


@pytest.mark.parametrize("layout", WRITTEN)
def test_it_travels_to_worker_processes(layout: str, tmp_path: Path) -> None:
    data = opened(layout, tmp_path)
    one, other = (each.batch(torch.arange(3), CPU) for each in (data, pickle.loads(pickle.dumps(data))))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_kitti_needs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(Mistake, match=r"are read by OpenCV, which is not installed: pip install 'hjepa\[flow\]'"):
        opened("kitti", tmp_path)


def test_a_scene_is_in_one_split(tmp_path: Path) -> None:
    path = sintel(tmp_path, tuple(f"scene_{number}" for number in range(20)))
    data = FlowFiles(0, layout="sintel", path=str(path), height=6, width=8, valid=0.3, test=0.3)
    scenes = [{one.split("/")[0] for one in data.folder.splits[name]} for name in ("train", "valid", "test")]
    assert all(scenes) and sum(map(len, scenes)) == len(set().union(*scenes)) == 20
    assert sum(len(data.split(name)) for name in ("train", "valid", "test")) == 40


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut": ("00000_flow.flo", lambda path: path.write_bytes(path.read_bytes()[:-8]), "need 1132"),
    "magic": ("00000_flow.flo", lambda path: path.write_bytes(flo(field(0), 7.0)), "begins with 7"),
    "other size": (
        "00000_flow.flo",
        lambda path: path.write_bytes(flo(field(0, 10, 15))),
        "differ in size: 00000_flow.flo 15 x 10",
    ),
    "small": ("00000_flow.flo", lambda path: path.write_bytes(flo(field(0, 2, 2))), "differ in size"),
    "no frame": ("00000_img2.ppm", lambda path: path.unlink(), "its frame 00000_img2.ppm: FileNotFoundError"),
    "no picture": ("00000_img1.ppm", lambda path: path.write_text("P9 or so"), "its frame 00000_img1.ppm: does not begin"),
    "empty": ("00000_img1.ppm", lambda path: path.write_bytes(b""), "its frame 00000_img1.ppm: is empty"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_pair_is_listed_with_its_reason_and_not_used(kind: str, tmp_path: Path) -> None:
    name, damage, reason = BROKEN[kind]
    path = chairs(tmp_path)
    damage(path / name)
    data = FlowFiles(0, layout="chairs", path=str(path), height=HEIGHT, width=WIDTH, valid=0, test=0, bad=0.5)
    assert list(data.manifest.good) == ["00001_flow.flo", "00002_flow.flo"] and reason in data.manifest.bad["00000_flow.flo"]
    assert data.batch(torch.arange(2), CPU)["flow"].shape == (2, 1, 2, HEIGHT, WIDTH)
    with pytest.raises(Mistake, match=r"1 of 3 pairs of data.* cannot be read, more than the share of 0.1.*00000_flow.flo"):
        FlowFiles(0, layout="chairs", path=str(path), height=HEIGHT, width=WIDTH, bad=0.1)


def test_a_pair_that_fails_later_is_replaced_by_the_next(tmp_path: Path) -> None:
    data = opened("chairs", tmp_path)
    first, second = data.folder.splits["train"][:2]
    (tmp_path / "data" / first).write_bytes(b"gone")
    batch = data.batch(torch.tensor([0, 1]), CPU)
    assert torch.equal(batch["flow"][0], batch["flow"][1]) and list(data.folder.lost) == [first] and second != first


def test_frames_that_are_too_small_and_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"there are no pairs of data.*14 x 10 pixels large; 16 x 16 are asked for"):
        opened("chairs", tmp_path, height=16, width=16)
    with pytest.raises(Mistake, match="there is no such folder"):
        FlowFiles(0, layout="chairs", path=str(tmp_path / "nowhere"))
    with pytest.raises(Mistake, match="flow: there is no such folder"):
        FlowFiles(0, layout="sintel", path=str(chairs(tmp_path / "other")))
