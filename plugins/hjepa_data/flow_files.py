"""Pairs of frames with the flow between them, as FlyingChairs, MPI Sintel and KITTI keep them on a user's disk.

B batch    C channels    H W height and width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hjepa.contracts import Batch, Count, Fraction, Spec
from hjepa.errors import Mistake
from hjepa.nn.splits import Splits
from hjepa.nn.warping import inside
from hjepa_data import pictures
from hjepa_data.flow_formats import flo, flo_size, installed, kitti, kitti_size, mask
from hjepa_data.folder import dealt
from hjepa_data.manifest import Unreadable, manifest, quietly


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps what. Paths are those of files of flow, within the folder of these."""

    flow: str
    """The folder of the flow, as seen from that of the frames."""
    ending: str
    frames: Callable[[str], tuple[str, str]]
    """Path -> those of the two frames within their folder."""
    read: Callable[[Path], tuple[Tensor, Tensor]]
    """Path -> flow (2, H, W), and where it is known (H, W)."""
    size: Callable[[Path], tuple[int, int]]
    """Path -> H and W."""
    unit: Callable[[str], str]
    """Path -> what is never cut in two by splits."""
    seen: str = ""
    """The folder that says which pixels are occluded."""
    hidden: Callable[[Path, Tensor], Tensor] | None = None
    """Path in that folder, and where the flow is known -> what is occluded (H, W)."""


def _chairs_frames(path: str) -> tuple[str, str]:
    stem = path.removesuffix("_flow.flo")
    if stem == path:
        raise Unreadable("its name does not end in _flow.flo")
    return f"{stem}_img1.ppm", f"{stem}_img2.ppm"


def _sintel_frames(path: str) -> tuple[str, str]:
    stem, _, number = path.removesuffix(".flo").rpartition("_")
    if not number.isdecimal():
        raise Unreadable("its name does not end in _NUMBER.flo")
    return f"{stem}_{number}.png", f"{stem}_{int(number) + 1:0{len(number)}d}.png"


def _scene(path: str) -> str:
    return path.rpartition("/")[0]


def _sintel_hidden(path: Path, _: Tensor) -> Tensor:
    return mask(path.with_suffix(".png"))


def _kitti_hidden(path: Path, known: Tensor) -> Tensor:
    return known & ~kitti(path)[1]


def _kitti_frames(path: str) -> tuple[str, str]:
    stem = path.removesuffix("_10.png")
    if stem == path:
        raise Unreadable("its name does not end in _10.png")
    return f"{stem}_10.png", f"{stem}_11.png"


LAYOUTS = {
    "chairs": Layout(".", ".flo", _chairs_frames, flo, flo_size, str),
    "sintel": Layout(
        flow="../flow",
        ending=".flo",
        frames=_sintel_frames,
        read=flo,
        size=flo_size,
        unit=_scene,
        seen="../occlusions",
        hidden=_sintel_hidden,
    ),
    "kitti": Layout(
        flow="../flow_occ",
        ending=".png",
        frames=_kitti_frames,
        read=kitti,
        size=kitti_size,
        unit=str,
        seen="../flow_noc",
        hidden=_kitti_hidden,
    ),
}


class FlowFiles(Splits):
    """Samples of two frames, the middle of each at full resolution.

    Options:
        layout: `chairs`, pairs NUMBER_img1.ppm and NUMBER_img2.ppm with NUMBER_flow.flo beside them (FlyingChairs); `sintel`, a
            folder a scene with frame_NUMBER.png, and beside `path` the folders `flow` and `occlusions` (MPI Sintel); `kitti`, pairs
            NUMBER_10.png and NUMBER_11.png, and beside `path` the folders `flow_occ` and `flow_noc` (KITTI 2012 and 2015; needs
            OpenCV, `pip install 'hjepa[flow]'`).
        path: the folder of the frames: `data` of FlyingChairs, `training/clean` or `training/final` of Sintel, `training/image_2`
            of KITTI.
        height, width: H and W, of what is cut out of the middle of the frames. A pair that is smaller is not used.
        channels: 3, or 1 for grey.
        valid, test: which share of the pairs is held out for these splits, by a hash of their paths; of Sintel, which share of scenes.
        bad: which share of the pairs may be unreadable; more is a mistake.

    A batch holds
        frames (B,2,C,H,W): in [0,1].
        flow (B,1,2,H,W): (x, y) in pixels, 0 where it is not known.
        known (B,1,H,W) bool: where the flow is known.
        occluded (B,1,H,W) bool, where the data set says it: whether what a pixel shows cannot be seen in the second frame. What leaves
            the part that is cut out is occluded too.

    `manifest.bad` lists the pairs that are not used, by the path of their flow and with the reason: each is looked at before training,
    its flow by its header and length, its frames by their headers. A pair that cannot be read later is replaced by the next one of its
    split, listed in `folder.lost`, and told of.
    """

    def __init__(
        self,
        seed: int,
        *,
        layout: Literal["chairs", "sintel", "kitti"],
        path: str,
        height: Count = 320,
        width: Count = 448,
        channels: Literal[1, 3] = 3,
        valid: Fraction = 0.1,
        test: Fraction = 0.1,
        bad: Fraction = 0.2,
    ) -> None:
        if layout == "kitti":
            installed()
        self.layout, self.root = LAYOUTS[layout], Path(path).expanduser().absolute()
        self.size, self.channels = (height, width), channels
        if not self.root.is_dir():
            raise Mistake(f"{self.root}: there is no such folder")
        self.truth = (self.root / self.layout.flow).resolve()
        self.seen = (self.root / self.layout.seen).resolve() if self.layout.seen else None
        self.manifest = manifest(
            self.truth, f"pairs of {self.root.name}, {width}x{height},", (self.layout.ending,), self._look, bad
        )
        self.folder = dealt(self.manifest, valid, test, self.layout.unit)
        self.streams = {"frames": Spec(maps=((channels, height, width),), ticks=(0, 1))}

    def __len__(self) -> int:
        return len(self.folder.splits[self.name])

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        samples = [sample for _, sample in self.folder.read(self.name, ids.tolist(), 1, self._read)]
        batch = {name: torch.stack([sample[name] for sample in samples]).to(device) for name in samples[0]}
        return batch | {"frames": batch["frames"].float().div_(255)}

    def _look(self, path: Path) -> int:
        """2, the frames of a pair that can be used."""
        sizes = {path.name: self.layout.size(path)}
        for name in self.layout.frames(path.relative_to(self.truth).as_posix()):
            sizes[name] = self._checked(name, pictures.shape)
        if len(set(sizes.values())) > 1:
            raise Unreadable("its parts differ in size: " + ", ".join(f"{name} {w} x {h}" for name, (h, w) in sizes.items()))
        (height, width), (least_height, least_width) = sizes[path.name], self.size
        if height < least_height or width < least_width:
            raise Unreadable(f"is {width} x {height} pixels large; {least_width} x {least_height} are asked for")
        return 2

    def _checked(self, name: str, read: Callable[[Path], tuple[int, int]]) -> tuple[int, int]:
        try:
            return read(self.root / name)
        except Unreadable as error:
            raise Unreadable(f"its frame {name}: {error}") from error

    def _read(self, path: str, _: int) -> Batch:
        with quietly():
            flow, told = self.layout.read(self.truth / path)
            frames = [pictures.whole(self.root / name, self.channels) for name in self.layout.frames(path)]
            sample = {"frames": torch.stack(frames), "flow": flow[None], "known": told[None]}
            if self.seen is not None and self.seen.is_dir() and self.layout.hidden is not None:
                sample["occluded"] = self.layout.hidden(self.seen / path, told)[None]
        cut = {name: self._middle(values) for name, values in sample.items()}
        if "occluded" in cut:
            cut["occluded"] = cut["occluded"] | (cut["known"] & ~inside(cut["flow"]))
        return cut

    def _middle(self, values: Tensor) -> Tensor:
        (height, width), (rows, columns) = self.size, values.shape[-2:]
        if rows < height or columns < width:
            raise Unreadable(f"is {columns} x {rows} pixels large; {width} x {height} are asked for")
        top, left = (rows - height) // 2, (columns - width) // 2
        return values[..., top : top + height, left : left + width]
