"""Sources -> batches, as a pure function of the step.

Which samples step s sees is found from s alone (an epoch's order is a keyed bijection), so a run that resumes reads on as if it
had never stopped, with any number of workers, and nothing of the order is stored.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hjepa import distributed
from hjepa.contracts import Batch, Dataset, Transform
from hjepa.errors import Mistake
from hjepa.keys import SourceKeys
from hjepa.randomness import Key, permuted
from hjepa.study import Study

PR_SET_PDEATHSIG = 1
"""Of Linux: which signal a process gets when its parent dies."""


@dataclass(frozen=True)
class Source:
    """One source of a study: a dataset, and what the loader does with it."""

    label: str
    keys: SourceKeys
    seed: int
    dataset: Dataset
    train: Dataset
    transforms: list[Transform]

    def due(self, step: int) -> bool:
        """Whether the source gives a batch at this step."""
        return step % self.keys.every == 0

    def order(self, step: int) -> tuple[Tensor, Tensor]:
        """The ids and the epoch of each sample of this process' share of the step's batch, (B,) each."""
        share = self.keys.batch // distributed.world()
        first = (step // self.keys.every) * self.keys.batch + distributed.rank() * share
        place = torch.arange(first, first + share)
        count = len(self.train)
        epoch = place // count
        key = Key.of(self.seed, "order", self.label).fold(epoch)
        return permuted(place % count, count, key), epoch

    def finish(self, read: tuple[Batch, Tensor, Tensor], device: torch.device) -> Batch:
        """On the device, with ids, and changed by the transforms, each sample by its own key."""
        batch, ids, epoch = read
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        moved |= {"ids": ids.to(device), "epoch": epoch.to(device)}
        for position, transform in enumerate(self.transforms):
            key = Key.of(self.seed, "transform", self.label, position, device=device)
            moved = transform(moved, key.fold(moved["epoch"], moved["ids"]))
        return moved

    def count(self, split: str, most: int) -> int:
        """How many samples of a split there are to look at; Mistake where there is none."""
        found = len(self.dataset.split(split))
        if not found:
            raise Mistake(f"data.{self.label}: its split {split!r} is empty")
        return min(most, found)

    def look(self, split: str, start: int, stop: int, device: torch.device) -> Batch:
        """Samples `start` to `stop` of a split, untransformed: always the same."""
        ids = torch.arange(start, stop)
        batch = self.dataset.split(split).batch(ids, device)
        return {name: tensor.to(device) for name, tensor in batch.items()} | {
            "ids": ids.to(device),
            "epoch": torch.full_like(ids, -1).to(device),
        }


def sources(study: Study, datasets: Mapping[str, Dataset], transforms: Mapping[str, list[Any]]) -> dict[str, Source]:
    """The sources of a study. Mistake where a batch cannot be shared out, or a split is empty."""
    made = {}
    for label, plan in study.sources.items():
        if plan.keys.batch % distributed.world():
            raise Mistake(f"data.{label}.batch: {plan.keys.batch} cannot be shared by {distributed.world()} processes")
        seed = study.seed if plan.keys.seed is None else plan.keys.seed
        train = datasets[label].split(plan.keys.split)
        made[label] = Source(label, plan.keys, seed, datasets[label], train, transforms[label])
        made[label].count(plan.keys.split, 1)
    return made


class _Fetch(torch.utils.data.Dataset[dict[str, Any]]):
    """Item s is what step s reads: workers give whole batches, in order."""

    def __init__(self, all_sources: list[Source]) -> None:
        self.sources = all_sources

    def __getitem__(self, step: int) -> dict[str, Any]:
        due = [source for source in self.sources if source.due(step)]
        return {source.label: _read(source, step, torch.device("cpu")) for source in due}


def _read(source: Source, step: int, device: torch.device) -> tuple[Batch, Tensor, Tensor]:
    ids, epoch = source.order(step)
    return source.train.batch(ids, device), ids, epoch


def batches(
    all_sources: Mapping[str, Source], steps: range, workers: int, device: torch.device
) -> Generator[tuple[int, dict[str, Batch]]]:
    """Each step with the batch of each source that is due. Close it, so that the workers end with it."""
    listed = list(all_sources.values())
    if workers == 0:
        for step in steps:
            due = [source for source in listed if source.due(step)]
            yield step, {source.label: source.finish(_read(source, step, device), device) for source in due}
        return
    with closing(_workers(listed, steps, workers, device)) as reading:
        for step, read in zip(steps, reading, strict=True):
            yield step, {label: all_sources[label].finish(item, device) for label, item in read.items()}


def _workers(listed: list[Source], steps: range, workers: int, device: torch.device) -> Generator[dict[str, Any]]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loader = StatefulDataLoader(
            _Fetch(listed),
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            worker_init_fn=_begin_worker,
            pin_memory=device.type == "cuda",
            multiprocessing_context="fork" if sys.platform == "linux" else None,  # a worker's parent is who trains
        )
        reading = iter(loader)
        try:
            yield from reading
        finally:
            reading._shutdown_workers()  # also where one has raised: a deaf worker would keep this process from ending


def _begin_worker(worker: int) -> None:
    """A signal to all processes of a run is for the one that trains: it ends its workers when the step is saved.

    And where it is killed, they die with it: otherwise they would hold on to its locks and pipes for some seconds.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)  # it died before it was said that this one should, too
