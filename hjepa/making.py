"""What a study asks for, made: the device, the sources, the stack before its first step, and the weights that it starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hjepa import checkpoint, runs
from hjepa.compose import Maker, make_sources, streams_of
from hjepa.contracts import Dataset
from hjepa.errors import Mistake
from hjepa.stack import Stack, load_state, owned_elsewhere
from hjepa.study import Study


def device(study: Study) -> torch.device:
    """`auto` is the GPU of this process, where there is one. On a GPU, sums are taken in an order that repeats."""
    wanted = study.train.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(wanted)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise Mistake(f"train.device: {wanted!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if found.type == "cuda":
        torch.use_deterministic_algorithms(True, warn_only=True)
    return found


def made_sources(study: Study) -> dict[str, Dataset]:
    """The datasets of a study; Mistake where one refuses what it was told."""
    datasets = make_sources(study)
    study.complain()
    return datasets


def transforms(study: Study) -> dict[str, list[Any]]:
    """What changes the batches of each source."""
    maker = Maker(study)
    return {label: [maker.make(node) for node in plan.transforms] for label, plan in study.sources.items()}


def new_stack(study: Study, datasets: Mapping[str, Dataset], on: torch.device) -> Stack:
    """The stack before its first step."""
    return Stack(study, streams_of(datasets)).to(on)


def load_weights(study: Study, stack: Stack, say: Callable[[str], None]) -> None:
    """`weights: RUN[/LEVEL]` of each level."""
    for label, plan in study.levels.items():
        if plan.keys.weights is None:
            continue
        run, other = _run_and_level(plan.keys.weights, label)
        saved = checkpoint.newest(run.checkpoints, say)
        prefix = f"model/levels.{other}."
        state = {name.removeprefix(prefix): tensor for name, tensor in saved.tensors.items() if name.startswith(prefix)}
        if not state:
            raise Mistake(f"levels.{label}.weights: {run.path} has no level {other!r}")
        shared = {name: f"model/{owned}" for name, owned in owned_elsewhere(stack, label).items()}
        state |= {name: saved.tensors[owned] for name, owned in shared.items() if owned in saved.tensors}
        load_state(stack.levels[label], state, f"levels.{label}.weights: {saved.path}")


def _run_and_level(reference: str, label: str) -> tuple[runs.Run, str]:
    """`RUN`, whose level has the same label, or `RUN/LEVEL`."""
    try:
        return runs.find(reference), label
    except Mistake:
        head, slash, level = reference.rpartition("/")
        if not slash:
            raise
        return runs.find(head), level
