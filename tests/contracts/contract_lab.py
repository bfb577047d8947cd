"""Studies of this folder, composed and trained; as a script, several processes that train them together."""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import json
import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hjepa import checkpoint, distributed, loading, registry, runs, stack
from hjepa import study as studies
from hjepa import train as training
from hjepa.contracts import Batch, Here, Outcome
from hjepa.registry import Registry
from hjepa.stack import Pass, Stack
from hjepa.study import Study
from hjepa.train import Trainer

STUDIES = Path(__file__).parent / "studies"
STEPS = 3
CPU = torch.device("cpu")


@cache
def installed() -> Registry:
    """All that is installed, and the plugin of these tests, through the same door."""
    own = metadata.EntryPoint("contract_parts", "contract_parts", registry.GROUP)
    return registry.load(points=[*metadata.entry_points(group=registry.GROUP), own])


def study(name: str, *overrides: str) -> Study:
    return studies.read(str(STUDIES / f"{name}.yaml"), overrides, installed())


def train(plan: Study, folder: Path, resume: bool = False) -> None:
    stack.check(plan)
    run = runs.reopen(plan, folder) if resume else runs.create(plan, folder, installed())
    training.train(plan, run, installed(), resume, _nothing, lambda trainer, values: None, _nothing)


def trainer(name: str, folder: Path, *overrides: str) -> Trainer:
    """At step 0, in a new run folder."""
    plan = study(name, *overrides)
    plan.complain()
    return Trainer(plan, runs.create(plan, folder, installed()), installed(), _nothing)


def _nothing(said: Any) -> None:
    """Nobody listens, and nothing is drawn."""


def restored(folder: Path) -> Trainer:
    """The trainer of a run, at its last checkpoint."""
    plan = studies.parse(runs.Run(folder).resolved(), installed())
    made = Trainer(plan, runs.Run(folder), installed(), _nothing)
    made.restore(checkpoint.newest(folder / "checkpoints", _nothing))
    return made


def batches(of: Trainer, step: int = 0) -> dict[str, Batch]:
    """What a step reads."""
    return next(loading.batches(of.sources, range(step, step + 1), 0, CPU))[1]


def here(of: Stack, label: str, given: dict[str, Batch], step: int = 0) -> Here:
    """What a level sees of a step."""
    one = Pass(of, given, step)
    one.wanted = one._wanted()
    return one.here(label)


def steps(of: Trainer, count: int = STEPS) -> list[dict[str, Outcome]]:
    """The outcomes of the first steps."""
    return [of.step(step, given) for step, given in loading.batches(of.sources, range(count), 0, CPU)]


def digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        found.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# --- several processes, which share every batch -----------------------------------------------------------------------


def share(folder: Path, names: Sequence[str]) -> None:
    """Trains studies, each with its overrides behind it, as one of WORLD_SIZE processes; the first leaves what they became."""
    torch.set_num_threads(1)
    distributed.start()
    for name, *overrides in (written.split(" ") for written in names):
        made = Trainer(study(name, *overrides), runs.Run(folder), installed(), _nothing)
        steps(made)
        if distributed.rank() == 0:
            torch.save(stack.unique_state(made.stack), folder / f"{name}.pt")
    distributed.stop()


def forked(rank: int, folder: Path, names: Sequence[str]) -> int:
    """A process that does its share."""
    child = os.fork()
    if child:
        return child
    os.environ["RANK"], code = str(rank), 1
    try:
        share(folder, names)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    import sklearn.datasets  # noqa: F401  what takes seconds is imported once
    import torch._dynamo

    sys.path.insert(0, str(Path(__file__).parent / "plugin"))
    children = [forked(rank, Path(sys.argv[1]), json.loads(sys.argv[2])) for rank in range(int(os.environ["WORLD_SIZE"]))]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
