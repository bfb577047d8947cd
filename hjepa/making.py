"""What a study asks for, made: the device, the sources, the stack before its first step, and the weights that it starts from."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from hjepa import checkpoint, runs
from hjepa.compose import Maker, make_sources, streams_of
from hjepa.contracts import Dataset
from hjepa.errors import Mistake
from hjepa.nn.blocks import Block
from hjepa.stack import Stack, load_state, owned_elsewhere
from hjepa.study import Study

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`: from how many bytes on what is free is given back, and what is taken is taken from the system."""


def device(study: Study) -> torch.device:
    """`auto` is the GPU of this process, where there is one. On a GPU, sums are taken in an order that repeats; on a CPU, memory
    that is freed stays with the process.
    """
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
    if found.type == "cpu":
        keep_freed_memory()
    return found


def keep_freed_memory() -> None:
    """What one step frees, the next one uses: by itself glibc gives it back to the system, and gets it again page by page, zeroed.

    Elsewhere than with glibc nothing is changed.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)):
        for option in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            set_option(option, 2**31 - 1)


def precision(study: Study, on: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """What training computes in. Mistake where bfloat16 is not what the hardware computes with: it is several times slower then."""
    if study.train.precision == "float32":
        return nullcontext
    if not _has_bfloat16(on):
        raise Mistake(
            f"train.precision: bfloat16 is emulated on this {on.type.upper()}, and several times slower than float32; leave it out"
        )
    return partial(torch.autocast, on.type, torch.bfloat16)


def _has_bfloat16(on: torch.device) -> bool:
    if on.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def compile_blocks(stack: Stack) -> None:
    """Every transformer block, each kind once. Mistake where there is none."""
    blocks = [module for module in stack.modules() if isinstance(module, Block)]
    if not blocks:
        raise Mistake("train.compile: no level has transformer blocks, and they are what is compiled")
    for block in blocks:
        block.compile(dynamic=True)


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
