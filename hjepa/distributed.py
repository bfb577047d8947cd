"""Several processes, one training: each has its share of the batch, and all do together what one would do with all of it.

The rule: what a rank back-propagates may be any number, as long as the *mean* over ranks is the loss of the whole batch,
gradients included. Losses that are means over samples keep it for nothing; statistics over the batch keep it by `gather_rows`
and `sum_ranks`, which are differentiable. After `backward`, `average_gradients` gives each rank the gradient of all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate, groupby
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hjepa.errors import Mistake

T = TypeVar("T")
TensorT = TypeVar("TensorT", bound=Tensor)

BUCKET = 1 << 24
"""Elements that travel at once: enough to hide the latency, few enough not to double the memory."""


def start() -> None:
    """Joins the processes that `torchrun` started (NCCL between GPUs, gloo between CPUs); nothing where there is only one.

    Mistake where WORLD_SIZE is set without the variables that go with it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or world() > 1:
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise Mistake(f"WORLD_SIZE is set but {', '.join(missing)} not: start several processes with torchrun")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leaves the other processes, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """As if this process were the only one: for what one of them does by itself, where nobody else would answer."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _ALONE.get() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def anywhere(flag: bool) -> bool:
    """Whether any process says so. A small message between the CPUs: no GPU is waited for."""
    if world() == 1:
        return flag
    said = torch.tensor(int(flag))
    dist.all_reduce(said)
    return bool(said)


def from_first(make: Callable[[], T]) -> T:
    """What rank 0 makes, in every process; the others get a copy, by pickle. Its Mistake is raised in all of them."""
    told: list[Any] = [None, ""]
    if rank() == 0:
        try:
            told[0] = make()
        except Mistake as mistake:
            if world() == 1:
                raise
            told[1] = str(mistake)
    if world() > 1:
        dist.broadcast_object_list(told, device=torch.device("cpu"))
    if told[1]:
        raise Mistake(told[1])
    return told[0]


def gather_rows(x: Tensor) -> Tensor:
    """(R, ...) -> (R of all ranks, ...), in the order of the ranks; differentiable. Ranks may differ in R alone."""
    return x if world() == 1 else _GatherRows.apply(x)  # type: ignore[no-untyped-call]


def sum_ranks(x: Tensor) -> Tensor:
    """The sum over ranks of tensors of one shape; differentiable."""
    return x if world() == 1 else _SumRanks.apply(x)  # type: ignore[no-untyped-call]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its mean over ranks, in place.

    A parameter without gradient here counts as 0 if it has one elsewhere, and keeps none if it has none anywhere.
    """
    if world() == 1:
        return
    for bucket in _buckets([p for p in parameters if p.requires_grad]):
        given = [p.grad is not None for p in bucket]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([*(g.flatten() for g in gradients), gradients[0].new_tensor(given)])
        dist.all_reduce(flat)
        flat /= world()
        *means, anywhere = torch.split(flat, [*(g.numel() for g in gradients), len(bucket)])
        torch._foreach_copy_(gradients, [m.view_as(g) for m, g in zip(means, gradients, strict=True)])
        if not all(given):  # only then: reading a device waits for it
            for parameter, gradient, share in zip(bucket, gradients, anywhere.tolist(), strict=True):
                parameter.grad = gradient if share > 0 else None


def follow_first(tensors: Iterable[Tensor]) -> None:
    """Gives all processes the values of rank 0, in place: what each keeps of its own share of the batches (statistics, queues)
    would make them different models, and a checkpoint holds only one.
    """
    if world() == 1:
        return
    for bucket in _buckets(list(tensors)):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.broadcast(flat, 0)
        parts = torch.split(flat, [tensor.numel() for tensor in bucket])
        torch._foreach_copy_(bucket, [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)])


def _buckets(tensors: list[TensorT]) -> Iterator[list[TensorT]]:
    """In the given order, of one type and device each, and of about `BUCKET` elements."""
    for _, alike in groupby(sorted(tensors, key=_likeness), key=_likeness):
        listed = list(alike)
        ends = accumulate(p.numel() for p in listed)
        for _, numbered in groupby(zip(ends, listed, strict=True), key=lambda pair: pair[0] // BUCKET):
            yield [tensor for _, tensor in numbered]


def _likeness(tensor: Tensor) -> tuple[str, str]:
    return str(tensor.dtype), str(tensor.device)


class _GatherRows(torch.autograd.Function):
    """Every rank uses every row, so a row's gradient is the sum of what all ranks have for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        counts = [x.new_empty((), dtype=torch.int64) for _ in range(world())]
        dist.all_gather(counts, x.new_full((), len(x), dtype=torch.int64))
        rows = [int(count) for count in counts]
        ctx.rows = rows
        padded = x.new_zeros(max(rows), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return torch.split(total, ctx.rows)[rank()]


class _SumRanks(torch.autograd.Function):
    """Its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumRanks.forward(ctx, gradient)
