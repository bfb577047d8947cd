"""Every way to compute attention gives what torch gives, forward and backward; most of them on a GPU alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from hjepa import registry
from hjepa.nn import Block, BlockCausal, Mask, Sets, rotation
from hjepa_attention.sdpa import SDPA

ENTRIES = [entry for entry in registry.load().entries() if entry.kind == "attention" and entry.plugin.name == "hjepa_attention"]
LENGTHS, OTHERS = [37, 1, 64, 20], [12, 128, 5, 33]
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 4e-2}
"""A GPU multiplies float32 in shorter ones, and bfloat16 keeps 8 bits."""

every = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def masks(device: torch.device) -> dict[str, tuple[Mask, int, int, int]]:
    """Name -> what is described, how many rows, queries and keys."""
    lengths, others = torch.tensor(LENGTHS, device=device), torch.tensor(OTHERS, device=device)
    total = sum(LENGTHS)
    return {
        "dense": (None, 3, 50, 50),
        "packed": (Sets(lengths), 1, total, total),
        "packed across": (Sets(lengths, others), 1, total, sum(OTHERS)),
        "packed alike": (Sets(torch.full((4,), 32, device=device)), 1, 128, 128),
        "block-causal": (BlockCausal(8), 2, 64, 64),
        "a tensor": (torch.eye(50, dtype=torch.bool, device=device), 2, 50, 50),
    }


def drawn(rows: int, queries: int, keys: int, device: torch.device, dtype: torch.dtype, width: int = 32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    sides = [torch.randn(rows, 4, length, width, generator=draw) for length in (queries, keys, keys)]
    return [side.to(device, dtype).requires_grad_() for side in sides]


def computed(way: Any, mask: Mask, *leaves: Tensor) -> list[Tensor]:
    """What it gives, and the gradients of query, key and value."""
    out = way(*leaves, mask)
    return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]


@every
@pytest.mark.parametrize("name", masks(torch.device("cpu")))
def test_on_a_cpu_it_computes_or_says_why_not(entry: Any, name: str) -> None:
    way, cpu = entry.load()(), torch.device("cpu")
    mask, *sizes = masks(cpu)[name]
    leaves = drawn(*sizes, cpu, torch.float32)
    if refusal := way.refuses(leaves[0], mask):
        assert "cpu" in refusal and "use `sdpa`" in refusal
    else:
        for one, other in zip(computed(way, mask, *leaves), computed(SDPA(), mask, *leaves), strict=True):
            torch.testing.assert_close(one, other)


@every
def test_it_holds_nothing_and_can_be_copied_with_a_teacher(entry: Any) -> None:
    way = entry.load()()
    block = Block(16, 2, depth=1, attend=way)
    assert list(copy.deepcopy(block).state_dict()) == list(Block(16, 2, depth=1).state_dict())


MUST = {
    ("varlen", "dense", torch.bfloat16),
    ("varlen", "packed", torch.bfloat16),
    ("varlen", "packed across", torch.bfloat16),
    ("varlen", "packed alike", torch.bfloat16),
    *(("xformers", name, dtype) for name in ("dense", "packed", "packed across", "packed alike") for dtype in TOLERANCE),
}
"""What may not be refused on a GPU of compute capability 8.0 to 9.0."""


@pytest.mark.gpu
@gpu
@every
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", masks(torch.device("cpu")))
def test_on_a_gpu_it_gives_what_torch_gives(entry: Any, name: str, dtype: torch.dtype) -> None:
    way, cuda = entry.load()(), torch.device("cuda")
    mask, *sizes = masks(cuda)[name]
    leaves = drawn(*sizes, cuda, dtype)
    if refusal := way.refuses(leaves[0], mask):
        able = (8, 0) <= torch.cuda.get_device_capability() <= (9, 0)
        assert not (able and ((entry.name, name, dtype) in MUST or entry.name in ("sdpa", "auto"))), refusal
        pytest.skip(refusal)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for one, other in zip(computed(way, mask, *leaves), computed(SDPA(), mask, *exact), strict=True):
        torch.testing.assert_close(one.double(), other, atol=TOLERANCE[dtype] * float(other.abs().max()), rtol=0)


@pytest.mark.gpu
@gpu
@every
@pytest.mark.parametrize("packed", [True, False])
def test_on_a_gpu_blocks_run_with_it_under_autocast(entry: Any, packed: bool) -> None:
    """Forward and backward, with positions that turn queries and keys."""
    torch.manual_seed(0)
    cuda = torch.device("cuda")
    sets = Sets(torch.tensor(LENGTHS, device=cuda)) if packed else None
    x = torch.randn(1, sum(LENGTHS), 64, device=cuda)
    by = rotation(torch.arange(sum(LENGTHS), device=cuda)[:, None], 32)
    block = Block(64, 2, depth=1).to(cuda)
    found = []
    for way in (entry.load()(), SDPA()):
        block.attention.attend = way
        with torch.autocast("cuda", torch.bfloat16):
            query = block.attention.project(x).view(1, -1, 3, 2, 32)[:, :, 0].transpose(1, 2)
            if refusal := way.refuses(query, sets):
                pytest.skip(refusal)
            out = block(x, sets, by)
        found.append([out.float(), *torch.autograd.grad(out.float().square().mean(), list(block.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=4e-2 * float(other.abs().max()), rtol=0)
