"""How much a step computes: the floating-point operations of its matrix products, convolutions and attention, there and back.

A product of (m, k) and (k, n) is 2mkn of them. What is element by element is not counted: it costs memory traffic, not these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hjepa import loading
from hjepa.contracts import Batch
from hjepa.making import made_sources, new_stack
from hjepa.stack import Stack
from hjepa.study import Study

SAMPLES = 4
"""What is computed to count: masks differ from sample to sample, so one would not do."""


class _Untracked(nullcontext[None]):
    """Counts for no module in particular: torch's own tracker stumbles where a module is called without gradient."""

    parents = ("Global",)


def counted(work: Callable[[], object]) -> int:
    """What `work` computes. Attention is taken apart, since its fused kernels are not counted everywhere."""
    with patch("torch.utils.flop_counter.ModuleTracker", _Untracked):
        counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        work()
    total: int = counter.get_total_flops()
    return total


def forward_backward(stack: Stack, batches: Mapping[str, Batch], step: int = 0) -> None:
    """A step up to its gradient."""
    outcomes = stack(batches, step)
    if outcomes:
        stack.loss(outcomes, step).backward()  # type: ignore[no-untyped-call]


def of_step(study: Study) -> int:
    """Of a step in which every source has a batch. Makes the stack, and computes with a few samples of each source."""
    cpu = torch.device("cpu")
    datasets = made_sources(study)
    stack = new_stack(study, datasets, cpu)
    sources = loading.sources(study, datasets, {label: [] for label in datasets})
    share = min(1.0, SAMPLES / min(source.keys.batch for source in sources.values()))
    batches = {}
    for label, source in sources.items():
        few = source.count(source.keys.split, max(1, round(share * source.keys.batch)))
        batches[label] = source.look(source.keys.split, 0, few, cpu)
    return round(counted(lambda: forward_backward(stack, batches)) / share)
