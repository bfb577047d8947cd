"""What do VICReg and SIGReg cost, forward and backward, beside the same formulas written plainly for autograd?

The plain ones are written below as the papers have them. Value and gradient must agree in the same run, or there is no result.
`kept` is what autograd keeps for the backward pass, each storage once, the input included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Bench, run
from hjepa.contracts import Pair, Spec
from hjepa.randomness import Key, normal
from hjepa_prevention.sigreg import Sigreg
from hjepa_prevention.vicreg import Vicreg

SHAPES = ((1536, 64, 256), (256, 2048, 256), (2048, 512, 1024))
"""Rows, width and slices: the quickstart's frames, wide with few rows, and narrow with many, with as many slices as LeJEPA's."""
KNOTS, REACH = 17, 3.0
KEY = Key.of(0, "penalties")

Loss = Callable[[Tensor], Tensor]


def plain_vicreg(x: Tensor) -> Tensor:
    rows, width = x.shape
    centred = x - x.mean(0)
    covariance = centred.T @ centred / (rows - 1)
    variance = covariance.diagonal()
    between = (covariance.square().sum() - variance.square().sum()) / (width * (width - 1))
    return 10 * (1 - (variance + 1e-4).sqrt()).relu().mean() + 100 * between


def plain_sigreg(slices: int, x: Tensor) -> Tensor:
    lines = nn.functional.normalize(normal(KEY.on(x.device), "slices", (x.shape[1], slices)), dim=0)
    knots = torch.linspace(0, REACH, KNOTS, device=x.device)
    wanted = torch.exp(-knots.square() / 2)
    waves = (x @ lines)[..., None] * knots
    distance = (waves.cos().mean(0) - wanted).square() + waves.sin().mean(0).square()
    return 0.1 * len(x) * 2 * torch.trapezoid(wanted * distance, knots).mean()


def of_component(component: Any, x: Tensor) -> Tensor:
    terms = component.terms(Pair(x, x, x[:, None, None]), SimpleNamespace(step_key=KEY))
    return torch.stack(list(terms.values())).sum()


def backward(loss: Loss, x: Tensor) -> None:
    x.grad = None
    loss(x).backward()


def agreement(losses: Sequence[Loss], x: Tensor) -> float:
    """The greatest difference, relative to the greatest number: of the values and of the gradients."""
    values = [loss(x) for loss in losses]
    both = [(value.detach(), torch.autograd.grad(value, x)[0]) for value in values]
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(*both, strict=True))


def kept(loss: Loss, x: Tensor) -> float:
    """MB."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = loss(x)
    del alive
    return sum(storages.values()) / 1e6


def measure(bench: Bench) -> None:
    for rows, width, slices in ((32, 16, 8),) if bench.quick else SHAPES:
        x = torch.randn(rows, width, device=bench.device, requires_grad=True)
        vicreg, sigreg = Vicreg(Spec(width=width)), Sigreg(Spec(width=width), slices=slices, knots=KNOTS, reach=REACH)
        compare(bench, f"VICReg {rows} x {width}", partial(of_component, vicreg), plain_vicreg, x)
        of_sigreg, plain = partial(of_component, sigreg), partial(plain_sigreg, slices)
        compare(bench, f"SIGReg {rows} x {width}, {slices} slices", of_sigreg, plain, x)


def compare(bench: Bench, name: str, own: Loss, plain: Loss, x: Tensor) -> None:
    difference = agreement((own, plain), x)
    assert difference < 1e-3, f"{name}: the two formulas differ by {difference}"
    rows = bench.rounds({"own": partial(backward, own, x), "plain": partial(backward, plain, x)})
    bench.figure(name, "ms", [1e3 * row["own"] for row in rows], [1e3 * row["plain"] for row in rows])
    bench.figure(f"{name}, kept", "MB", [kept(own, x)], [kept(plain, x)])
    bench.figure(f"{name}, greatest difference", "of the greatest number", [difference])


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
