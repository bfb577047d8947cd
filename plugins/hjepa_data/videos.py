"""Samples from a folder of video files, each a clip of some frames; decoded by PyAV, which brings FFmpeg.

S side    T frames of a clip
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hjepa.contracts import Batch, Count, Fraction, Spec
from hjepa.errors import Mistake, some
from hjepa.nn.splits import Splits
from hjepa.randomness import Key, integers
from hjepa_data.films import ENDINGS, installed, look, read
from hjepa_data.folder import dealt
from hjepa_data.manifest import Manifest, manifest, quietly, tell


class Videos(Splits):
    """The videos of a folder and of the folders within it: mp4, WebM, Matroska, AVI, of any size, with any codec of FFmpeg.

    Options:
        path: the folder. Hidden files are passed over.
        frames: T, how many frames a clip has.
        frame_step: a clip takes every so many frames of its video.
        clips: how many clips a video gives, each a sample of its own. The places where a clip can begin are cut into so many
            stretches: in `train` a clip begins at random in its own, keyed by seed and path, else in the middle of it.
        size: S; the shorter side is brought to it, and the middle is cut out. Crops for training are a transform's affair.
        channels: 3, or 1 for grey.
        valid, test: which share of the videos is held out for these splits, by a hash of their paths, where a split has no
            folder of its own.
        bad: which share of the videos may be unreadable; more is a mistake.

    A batch holds
        frames (B,T,C,S,S): in [0,1].
        label (B,) int64: the place in `classes` of the folder that the video lies in.

    `manifest.bad` lists what is not read, by path and with the reason, those too short for a clip too. To be in the manifest all
    packets of a video are read and its first frame is decoded. One that cannot be decoded later is replaced by the next one of its
    split, listed in `folder.lost`, and told of. Of a clip only the frames from the key frame before it to its last are decoded.
    """

    def __init__(
        self,
        seed: int,
        *,
        path: str,
        frames: Count = 16,
        frame_step: Count = 4,
        clips: Count = 1,
        size: Count = 224,
        channels: Literal[1, 3] = 3,
        valid: Fraction = 0.1,
        test: Fraction = 0.1,
        bad: Fraction = 0.2,
    ) -> None:
        installed()
        self.seed, self.root, self.clips = seed, Path(path).expanduser().absolute(), clips
        self.frames, self.frame_step, self.size, self.channels = frames, frame_step, size, channels
        self.span = (frames - 1) * frame_step + 1
        self.manifest = _long_enough(manifest(self.root, "videos", ENDINGS, look, bad), self.span)
        self.folder = dealt(self.manifest, valid, test)
        self.classes = self.folder.classes
        self.streams = {"frames": Spec(maps=((channels, size, size),), ticks=tuple(range(frames)))}

    def __len__(self) -> int:
        return len(self.folder.splits[self.name]) * self.clips

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        paths, clips = zip(*self.folder.read(self.name, ids.tolist(), self.clips, self._read), strict=True)
        label = torch.tensor([self.folder.label[path] for path in paths], device=device)
        return {"frames": torch.stack(clips).to(device).float().div_(255), "label": label}

    def _read(self, path: str, clip: int) -> Tensor:
        """(T, C, S, S) uint8."""
        first = self._start(path, clip)
        with quietly():
            return read(self.root / path, range(first, first + self.span, self.frame_step), self.size, self.channels)

    def _start(self, path: str, clip: int) -> int:
        """The first frame of a clip."""
        places = self.manifest.good[path] - self.span + 1
        low = places * clip // self.clips
        high = max(low + 1, places * (clip + 1) // self.clips)
        if self.name != "train":
            return (low + high - 1) // 2
        return int(integers(Key.of(self.seed, "videos", path, clip), "start", low, high))


def _long_enough(found: Manifest, span: int) -> Manifest:
    short = {path: f"has {count} frames; a clip needs {span}" for path, count in found.good.items() if count < span}
    good = {path: count for path, count in found.good.items() if path not in short}
    if not good:
        longest = max(found.good.values())
        raise Mistake(
            f"{found.root}: a clip needs {span} frames, (frames - 1) * frame_step + 1; the longest video has {longest}"
        )
    if short:
        tell(f"{found.root}: {len(short)} of {len(found.good)} videos are too short for clips of {span} frames: {some(short)}")
    return replace(found, good=good, bad=dict(sorted((found.bad | short).items())))
