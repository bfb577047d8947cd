"""Samples from a folder of image files, one an image."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hjepa.contracts import Batch, Count, Fraction, Spec
from hjepa.nn.splits import Splits
from hjepa_data import pictures
from hjepa_data.folder import dealt
from hjepa_data.manifest import manifest, quietly


class Images(Splits):
    """The images of a folder and of the folders within it: PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, of any size and mode.

    Options:
        path: the folder. Hidden files are passed over.
        size: S; the shorter side is brought to it, and the middle is cut out. Crops for training are a transform's affair.
        channels: 3, or 1 for grey.
        valid, test: which share of the images is held out for these splits, by a hash of their paths, where a split has no
            folder of its own.
        bad: which share of the images may be unreadable; more is a mistake.

    A batch holds
        frames (B,1,C,S,S): in [0,1].
        label (B,) int64: the place in `classes` of the folder that the image lies in.

    `manifest.bad` lists what is not read, by path and with the reason. An image that is good in the manifest and cannot be read
    later is replaced by the next one of its split, listed in `folder.lost`, and told of. Ids are places among the good images
    of a split, in the order of a hash of their paths: with other files in the folder they are others.
    """

    def __init__(
        self,
        seed: int,
        *,
        path: str,
        size: Count = 224,
        channels: Literal[1, 3] = 3,
        valid: Fraction = 0.1,
        test: Fraction = 0.1,
        bad: Fraction = 0.2,
    ) -> None:
        self.root, self.size, self.channels = Path(path).expanduser().absolute(), size, channels
        self.manifest = manifest(self.root, "images", pictures.ENDINGS, pictures.look, bad)
        self.folder = dealt(self.manifest, valid, test)
        self.classes = self.folder.classes
        self.streams = {"frames": Spec(maps=((channels, size, size),))}

    def __len__(self) -> int:
        return len(self.folder.splits[self.name])

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        paths, images = zip(*self.folder.read(self.name, ids.tolist(), 1, self._read), strict=True)
        label = torch.tensor([self.folder.label[path] for path in paths], device=device)
        return {"frames": torch.stack(images).to(device)[:, None].float().div_(255), "label": label}

    def _read(self, path: str, _: int) -> Tensor:
        with quietly():
            return pictures.read(self.root / path, self.size, self.channels)
