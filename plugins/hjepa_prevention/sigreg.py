"""SIGReg (LeJEPA, arXiv 2511.08544): every projection of the embeddings onto a line shall look like a standard normal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hjepa.contracts import Count, Here, Pair, Positive, Spec
from hjepa.distributed import sum_ranks
from hjepa.nn.projector import projector as make_projector
from hjepa.nn.statistics import Over, at_least_float32, grouped, without_autocast
from hjepa.randomness import Key, normal

CHUNK = 1 << 16
"""Elements of one chunk of slices: what a CPU's cache holds. Elsewhere it is 64 times as many, as each call costs more."""


class Sigreg(nn.Module):
    """The test statistic of Epps and Pulley: how far the characteristic function of each slice is from exp(-t²/2).

    T = integral of exp(-t²/2) |mean exp(i t h) - exp(-t²/2)|² over t in [-reach, reach], by the trapezoidal rule; h are the
    embeddings on a random line, new at every step. The loss is the mean over lines. The gradient fades where |h| is far above
    `reach`: embeddings should begin at a scale of about 1.

    It prevents complete and dimensional collapse, and fixes the scale. It looks at the embeddings only: what is spread may still
    be noise, or the slowest feature of the input. Embeddings that are exactly equal have equal gradients and are never parted.

    weight: of the term. LeWM (arXiv 2603.19312) takes 0.1 `over: step` with 1024 slices, and finds 0.01 to 0.2 to work.
    slices: random lines a step; 256 in LeJEPA's minimal program, 1024 in its experiments.
    knots: nodes in [0, reach], both ends included; the negative half is the same.
    reach: the end of the integral.
    over: the samples of one statistic: `all` rows, each `step` by itself (LeWM), the first step of the `batch`, or the steps
        of each token in `time`; the mean over statistics counts.
    times_rows: multiply by the number of samples, as LeJEPA and LeWM do: perfectly normal embeddings then score about 1.06
        however many they are, and a weight holds for one number of samples. EB-JEPA does not multiply, at a weight of 10.
    projector: widths of a perceptron that the embeddings go through first. States that end in a layer norm cannot become normal
        and need one.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        weight: Positive = 0.1,
        slices: Count = 256,
        knots: Count = 17,
        reach: Positive = 3.0,
        over: Over = "step",
        times_rows: bool = True,
        projector: tuple[Count, ...] = (),
    ) -> None:
        super().__init__()
        if knots < 2:
            raise ValueError("knots must be 2 or more: an integral needs both its ends")
        self.weight, self.slices, self.knots, self.reach = weight, slices, knots, reach
        self.over, self.times_rows = over, times_rows
        self.projector = make_projector(spec.width, projector)

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`normal`: the mean statistic, weighted."""
        embedding = at_least_float32(self.projector(pair.embedding))
        with without_autocast(embedding):
            rows = grouped(embedding, self.over)
            statistic = self._statistic(rows @ self._lines(embedding, here.step_key))
            return {"normal": self.weight * statistic.mean()}

    def _lines(self, like: Tensor, key: Key) -> Tensor:
        """(D, slices) unit columns, the same on all ranks."""
        drawn = normal(Key(key.word.to(like.device)), "slices", (like.shape[-1], self.slices))
        return nn.functional.normalize(drawn.to(like.dtype), dim=0)

    def _statistic(self, projected: Tensor) -> Tensor:
        """(groups, rows, slices) -> (groups, slices)."""
        spacing = self.reach / (self.knots - 1)
        sums = _WaveSums.apply(projected, spacing, self.knots - 1)  # type: ignore[no-untyped-call]
        count = projected.new_full((), projected.shape[1])
        if self.over != "time":  # whose groups lie within samples: no rank needs another's rows
            sums, count = sum_ranks(sums), sum_ranks(count)
        # The knot 0 is left out: there both functions are 1. The other half of the integral doubles the weights of this one.
        knots = torch.arange(1, self.knots, device=projected.device, dtype=projected.dtype) * spacing
        wanted = torch.exp(-knots.square() / 2)[:, None, None]
        weights = 2 * spacing * wanted
        weights[-1] /= 2
        cosine, sine = (sums / count).unbind()
        statistic = (weights * ((cosine - wanted).square() + sine.square())).sum(0)
        return statistic * count if self.times_rows else statistic


def _waves(angle: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """cos(k angle) and sin(k angle), k from 1 to `count`: one turn after the other, without new cosines."""
    cosine, sine = first_cosine, first_sine = angle.cos(), angle.sin()
    yield cosine, sine
    for _ in range(count - 1):
        cosine, sine = cosine * first_cosine - sine * first_sine, sine * first_cosine + cosine * first_sine
        yield cosine, sine


class _WaveSums(torch.autograd.Function):
    """(G, R, K) -> (2, knots, G, K): sums over rows of cos(t h) and of sin(t h), t = spacing, 2 spacing, ...

    Some slices at a time, and once more for the gradient: (G, R, K, knots) never exists.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, spacing: float, count: int) -> Tensor:
        ctx.save_for_backward(h)
        ctx.spacing, ctx.count = spacing, count
        sums = h.new_empty(2, count, h.shape[0], h.shape[2])
        for some in _chunks(h):
            for k, (cosine, sine) in enumerate(_waves(h[..., some] * spacing, count)):
                sums[0, k, :, some] = cosine.sum(1)
                sums[1, k, :, some] = sine.sum(1)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (h,) = ctx.saved_tensors
        knots = torch.arange(1, ctx.count + 1, device=h.device, dtype=h.dtype) * ctx.spacing
        of_cosine, of_sine = (gradient * knots[:, None, None])[:, :, :, None].unbind()
        result = torch.zeros_like(h)
        for some in _chunks(h):
            part = torch.zeros_like(h[..., some], memory_format=torch.contiguous_format)
            for k, (cosine, sine) in enumerate(_waves(h[..., some] * ctx.spacing, ctx.count)):
                part.addcmul_(cosine, of_sine[k, ..., some]).addcmul_(sine, of_cosine[k, ..., some], value=-1)
            result[..., some] = part
        return result, None, None


def _chunks(h: Tensor) -> Iterator[slice]:
    groups, rows, slices = h.shape
    elements = CHUNK if h.device.type == "cpu" else 64 * CHUNK
    size = max(1, min(slices, elements // max(1, groups * rows)))
    return (slice(start, start + size) for start in range(0, slices, size))
