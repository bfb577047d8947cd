"""z has few entries that are not 0, found by iterated soft thresholding (sparse coding; ISTA: Beck, Teboulle 2009).

R(z) = weight * |z|_1
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from hjepa.contracts import Count, Positive, Spec, Whole
from hjepa.nn.energies import least, starts
from hjepa.randomness import Key
from hjepa_latent.memory import Memory


class Sparse(nn.Module):
    """z = argmin of E(z) + R(z), by proximal gradient steps with backtracking: the total falls with every step.

    width: of z; weight: of the sum of absolute values; steps: of the search; restarts: how many searches, the first from 0 and the
    others from N(0, 1); rate: the step size at first; memory: how many of the last z are kept, which samples are drawn from.

    What it prevents: a z that carries the whole target, since each further entry must lower the energy by more than it costs.
    What it does not: an entry whose influence on the energy is below `weight` stays 0, so a large weight shuts z up from the
    start; and weights that grow make z as small as it takes, so decay them.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Count = 8,
        weight: Positive = 0.01,
        steps: Whole = 20,
        restarts: Count = 1,
        rate: Positive = 1.0,
        memory: Count = 1024,
    ) -> None:
        super().__init__()
        self.width, self.weight, self.steps, self.restarts, self.rate = width, weight, steps, restarts, rate
        self.memory = Memory(memory, width)

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        """z (*shape, width) without gradient, and R(z) (*shape)."""
        begin = starts(self.restarts, tuple(target.shape[:-2]), self.width, key)
        z = least(energy_of_z, self.penalty, self._thresholded, begin, self.steps, self.rate)
        self.memory.keep(z)
        return z, self.penalty(z)

    def _thresholded(self, z: Tensor, rate: Tensor) -> Tensor:
        return z.sign() * (z.abs() - rate * self.weight).clamp(min=0)

    def sample(self, count: int, key: Key) -> Tensor:
        """(*key, count, width): from what was inferred lately."""
        return self.memory.draw(count, key)

    def penalty(self, z: Tensor) -> Tensor:
        return self.weight * z.abs().sum(dim=-1)

    def logs(self, z: Tensor) -> dict[str, Tensor]:
        """`active`: the share of entries that are not 0."""
        return {"active": (z != 0).float().mean()}
