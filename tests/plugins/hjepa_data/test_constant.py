"""Every sample looks the same, and is told truly what it was."""

from __future__ import annotations

import torch

from hjepa import registry
from hjepa.contracts import Dataset
from hjepa.making import made_sources
from hjepa.study import parse

RAW = {"name": "moving_digits", "frames": 4, "size": 12, "digit_size": 6, "samples": 8, "held_out": 4}


def source(**wrapped: object) -> Dataset:
    level = {"name": "forecast", "encoder": "conv", "predictor": "causal", "energy": "l2"}
    raw = {"seed": 3, "data": {"video": {"batch": 2, **wrapped}}, "levels": {"frame": level}, "train": {"steps": 1}}
    return made_sources(parse(raw, registry.load(())))["video"]


def test_what_is_seen_is_the_same_everywhere_and_the_labels_stay() -> None:
    ids, device = torch.arange(4), torch.device("cpu")
    for split in ("train", "valid"):
        plain, grey = (of.split(split).batch(ids, device) for of in (source(**RAW), source(name="constant", of=RAW)))
        assert grey["frames"].shape == plain["frames"].shape and grey["frames"].unique().tolist() == [0.5]
        assert all(torch.equal(grey[name], plain[name]) for name in plain if name != "frames")


def test_it_has_the_splits_of_its_source() -> None:
    grey = source(name="constant", of=RAW)
    assert [len(grey.split(name)) for name in ("train", "valid", "test")] == [8, 4, 4]
    assert grey.streams == source(**RAW).streams
