"""z is a vector, found by gradient descent; what limits it is its width, or a ridge (LeCun 2022, section 4.4; LV-EBM).

R(z) = ridge / 2 * |z|^2
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from hjepa.contracts import Count, NonNegative, Positive, Spec, Whole
from hjepa.nn.energies import least, starts
from hjepa.randomness import Key
from hjepa_latent.memory import Memory


class Continuous(nn.Module):
    """z = argmin of E(z) + R(z), by gradient steps with backtracking; the best that was seen counts.

    width: of z; ridge: 0 for no penalty; steps: of the search; restarts: how many searches, the first from 0 and the others from
    N(0, 1); rate: the step size at first; memory: how many of the last z are kept, which samples are drawn from.

    What it prevents: a z that is narrower than the states changes in, by its width, which of the wrong targets it can reach.
    What it does not: without a ridge and as wide as the target, z carries all of it, every target has energy 0 and nothing is
    predicted. A ridge alone is no bound either: weights that grow make z as small as it takes, so decay them.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Count = 2,
        ridge: NonNegative = 0.0,
        steps: Whole = 20,
        restarts: Count = 1,
        rate: Positive = 1.0,
        memory: Count = 1024,
    ) -> None:
        super().__init__()
        self.width, self.ridge, self.steps, self.restarts, self.rate = width, ridge, steps, restarts, rate
        self.memory = Memory(memory, width)

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        """z (*shape, width) without gradient, and R(z) (*shape)."""
        begin = starts(self.restarts, tuple(target.shape[:-2]), self.width, key)
        z = least(energy_of_z, self.penalty, self._drawn_in, begin, self.steps, self.rate)
        self.memory.keep(z)
        return z, self.penalty(z)

    def _drawn_in(self, z: Tensor, rate: Tensor) -> Tensor:
        return z / (1 + rate * self.ridge)

    def sample(self, count: int, key: Key) -> Tensor:
        """(*key, count, width): from what was inferred lately."""
        return self.memory.draw(count, key)

    def penalty(self, z: Tensor) -> Tensor:
        return self.ridge / 2 * z.square().sum(dim=-1)
