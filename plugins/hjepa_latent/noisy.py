"""z passes through a channel: a signal of bounded norm, to which noise is added (LeCun 2022, section 4.4; Shannon 1948).

R(z) = 0 where |z| <= bound, infinite elsewhere
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from hjepa.contracts import Count, NonNegative, Positive, Spec, Whole
from hjepa.nn.energies import least, starts
from hjepa.randomness import Key, normal
from hjepa_latent.memory import Memory


class Noisy(nn.Module):
    """z = argmin of E(z) within a ball, by projected gradient steps with backtracking; in training noise is added to it.

    width: of z; bound: the largest norm of the signal; noise: standard deviation of what is added to each entry; steps: of the
    search; restarts: how many searches, the first from 0 and the others from N(0, 1) within the ball; rate: the step size at first;
    memory: how many of the last signals are kept, which samples are drawn from.

    What it prevents: more than `width / 2 * log2(1 + bound^2 / (width * noise^2))` bits a step reach the prediction, on the mean,
    however large the weights become: signal and noise grow alike. What it does not: without noise the bound alone limits
    nothing, since weights can grow; and the bits may be spent on what could have been predicted.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Count = 2,
        bound: Positive = 1.0,
        noise: NonNegative = 0.3,
        steps: Whole = 20,
        restarts: Count = 1,
        rate: Positive = 1.0,
        memory: Count = 1024,
    ) -> None:
        super().__init__()
        self.width, self.bound, self.noise = width, bound, noise
        self.steps, self.restarts, self.rate = steps, restarts, rate
        self.memory = Memory(memory, width)

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        """z (*shape, width) without gradient, noisy in training, and zeros (*shape): the search never leaves the ball."""
        shape = tuple(target.shape[:-2])
        begin = self._within(starts(self.restarts, shape, self.width, key))
        z = least(energy_of_z, self.penalty, self._within, begin, self.steps, self.rate)
        self.memory.keep(z)
        if self.training:
            z = z + self.noise * normal(key, "noise", (*shape[key.word.ndim :], self.width))
        return z, self.penalty(z)

    def _within(self, z: Tensor, rate: Tensor | None = None) -> Tensor:
        return z * (self.bound / z.norm(dim=-1, keepdim=True).clamp(min=self.bound))

    def sample(self, count: int, key: Key) -> Tensor:
        """(*key, count, width): from the signals that were inferred lately."""
        return self.memory.draw(count, key)

    def penalty(self, z: Tensor) -> Tensor:
        """0: what is inferred and drawn lies within the ball, and noise costs nothing."""
        return z.new_zeros(z.shape[:-1])
