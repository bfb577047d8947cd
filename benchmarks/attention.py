"""How fast is attention within packed sets, forward and backward, beside the plain ways to keep sets apart?

Timed from the projected tokens (1, M, 3 D) to their gradient. The plain ways are those that are usually written: a slice for each set,
one mask for all of M x M, and every set padded to the longest. All must give the same, and the same gradient, or there is no result.
The longest case leaves the dense mask out, which would take a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from benchmarks.harness import Bench, run
from hjepa.nn import Sets
from hjepa_attention.auto import Auto

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Sets of `shortest` to `longest` tokens."""

    name: str
    sets: int
    shortest: int
    longest: int
    heads: int
    width: int


SHAPES = (
    Shape("contexts of I-JEPA", 64, 30, 110, 3, 64),
    Shape("the same, narrow heads", 64, 30, 110, 6, 32),
    Shape("context and target of I-JEPA", 256, 60, 140, 3, 64),
    Shape("small pictures", 128, 10, 40, 4, 16),
    Shape("clips of V-JEPA", 8, 380, 392, 12, 32),
    Shape("sets that are all as long", 64, 90, 90, 3, 64),
)
SMALL = (Shape("small", 3, 2, 5, 2, 8),)
MOST = 8000
"""Tokens, beyond which there is no dense mask."""


def sliced(lengths: list[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    ends = torch.tensor(lengths).cumsum(0).tolist()
    own = (slice(end - length, end) for end, length in zip(ends, lengths, strict=True))
    return torch.cat([F.scaled_dot_product_attention(query[:, :, i], key[:, :, i], value[:, :, i]) for i in own], dim=2)


def dense(lengths: list[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    number = torch.arange(len(lengths), device=query.device).repeat_interleave(torch.tensor(lengths, device=query.device))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=number[:, None] == number)


def padded(lengths: list[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    longest, device = max(lengths), query.device
    mask = torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]
    places = mask.flatten().nonzero()[:, 0]

    def beside(x: Tensor) -> Tensor:
        tokens = rearrange(x, "1 h m d -> m h d")
        spread = tokens.new_zeros(mask.numel(), *tokens.shape[1:]).index_copy(0, places, tokens)
        return rearrange(spread, "(s m) h d -> s h m d", m=longest)

    out = F.scaled_dot_product_attention(beside(query), beside(key), beside(value), attn_mask=mask[:, None, None])
    return rearrange(rearrange(out, "s h m d -> (s m) h d")[places], "m h d -> 1 h m d")


def there_and_back(way: Way, projected: Tensor, heads: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(1, M, 3 D) -> (1, M, D), and the gradient of what was projected."""
    query, key, value = rearrange(projected, "b m (part h d) -> part b h m d", part=3, h=heads)
    out = rearrange(way(query, key, value), "b h m d -> b m (h d)")
    return out.detach(), torch.autograd.grad((out * weight).sum(), projected)[0]


def ways(lengths: list[int], device: torch.device) -> dict[str, Way]:
    attend, sets = Auto(), Sets(torch.tensor(lengths, device=device))
    plain = {"a slice for each": sliced, "a dense mask": dense, "padding": padded}
    found: dict[str, Way] = {"own": lambda query, key, value: attend(query, key, value, sets)}
    found |= {name: partial(way, lengths) for name, way in plain.items()}
    if sum(lengths) > MOST:
        del found["a dense mask"]
    return found


def compare(bench: Bench, shape: Shape) -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(shape.shortest, shape.longest + 1, (shape.sets,), generator=draw).tolist()
    width = shape.heads * shape.width
    projected, weight = (torch.randn(1, sum(lengths), parts * width, generator=draw).to(bench.device) for parts in (3, 1))
    projected.requires_grad_()
    tried = {
        name: partial(there_and_back, way, projected, shape.heads, weight) for name, way in ways(lengths, bench.device).items()
    }
    agree(shape.name, tried)
    rows = bench.rounds(tried, count=5)
    for name in list(tried)[1:]:
        told = f"{shape.name} ({shape.sets} sets, {sum(lengths)} tokens, {shape.heads} x {shape.width}), beside {name}"
        bench.figure(told, "ms", [1e3 * row["own"] for row in rows], [1e3 * row[name] for row in rows])


def agree(what: str, tried: Mapping[str, Callable[[], tuple[Tensor, Tensor]]]) -> None:
    own, *others = (case() for case in tried.values())
    for name, other in zip(list(tried)[1:], others, strict=True):
        for one, two in zip(own, other, strict=True):
            difference = float((one - two).abs().max() / two.abs().max())
            assert difference < 1e-4, f"{what}: {name} differs by {difference}"


def measure(bench: Bench) -> None:
    for shape in SMALL if bench.quick else SHAPES:
        compare(bench, shape)


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
