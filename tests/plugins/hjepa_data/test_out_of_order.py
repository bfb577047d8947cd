"""The same steps in another order, each sample its own."""

from __future__ import annotations

import torch

from hjepa import registry
from hjepa.contracts import Batch, Dataset
from hjepa.making import made_sources
from hjepa.study import parse

RAW = {"name": "moving_digits", "frames": 6, "size": 12, "digit_size": 6, "samples": 64, "held_out": 16}
CPU = torch.device("cpu")


def source(**wrapped: object) -> Dataset:
    level = {"name": "forecast", "encoder": "conv", "predictor": "causal", "energy": "l2"}
    raw = {"seed": 3, "data": {"video": {"batch": 2, **wrapped}}, "levels": {"frame": level}, "train": {"steps": 1}}
    return made_sources(parse(raw, registry.load(())))["video"]


def both(ids: torch.Tensor, split: str = "train") -> tuple[Batch, Batch]:
    plain, mixed = (of.split(split).batch(ids, CPU) for of in (source(**RAW), source(name="out_of_order", of=RAW)))
    return plain, mixed


def orders(plain: Batch, mixed: Batch) -> torch.Tensor:
    """(B, T): which step of the source each step is."""
    same = (mixed["frames"][:, :, None] == plain["frames"][:, None]).flatten(3).all(dim=3)
    assert (same.sum(dim=2) == 1).all()
    return same.int().argmax(dim=2)


def test_every_step_is_there_once_in_an_order_of_the_sample_s_own() -> None:
    found = orders(*both(torch.arange(64)))
    assert (found.sort(dim=1).values == torch.arange(6)).all()
    assert len(found.unique(dim=0)) > 40
    first = torch.bincount(found[:, 0], minlength=6)
    assert first.min() >= 3  # any step may come first


def test_only_the_steps_change_places() -> None:
    plain, mixed = both(torch.arange(4), "valid")
    assert all(torch.equal(plain[name], mixed[name]) for name in plain if name != "frames")


def test_an_order_is_a_function_of_the_sample_alone() -> None:
    whole, some = both(torch.arange(8))[1], both(torch.tensor([5, 2]))[1]
    assert torch.equal(whole["frames"][[5, 2]], some["frames"])
    train, valid = orders(*both(torch.arange(8))), orders(*both(torch.arange(8), "valid"))
    assert not torch.equal(train, valid)
