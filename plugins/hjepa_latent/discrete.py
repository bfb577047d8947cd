"""z is one of a few learned codes; the one of least energy is found by trying all of them (LeCun 2022, section 4.4).

R(z) = 0 for a code, infinite for anything else
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Positive, Spec
from hjepa.nn.energies import free_energy
from hjepa.randomness import Key
from hjepa_latent.codebook import Codebook


class Discrete(nn.Module):
    """z = argmin of E over the codes, for each step by itself; the codes learn from the steps that chose them.

    count: of codes; width: of each; beta: the inverse temperature of the soft free energy (averaged form) that is trained instead
    of the least energy, so that every code learns from every step, the better ones more; none for the least.

    What it prevents: z says at most log2(count) bits a step. What it does not: with more codes than there are futures, some are
    never chosen (see `used` in the logs), or each future has several. Samples are codes as often as they were chosen lately.
    The search is exact for a predictor in which z leads to the next step alone.
    """

    def __init__(self, spec: Spec, *, count: Count = 8, width: Count = 8, beta: Positive | None = None) -> None:
        super().__init__()
        self.width, self.beta = width, beta
        self.book = Codebook(count, width)

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        """z (*shape, width), with the gradient of its code, and what the soft free energy is above the least energy (*shape)."""
        shape = target.shape[:-2]
        soft = self.beta is not None and torch.is_grad_enabled()
        with torch.set_grad_enabled(soft):
            energies = torch.stack([energy_of_z(code.expand(*shape, -1)).float() for code in self.book.codes])
        index = energies.argmin(dim=0)
        self.book.note(index)
        z = self.book.codes[index]
        if self.beta is None:
            return z, self.penalty(z)
        return z, free_energy(energies, self.beta) - energies.amin(dim=0)

    def sample(self, count: int, key: Key) -> Tensor:
        """(*key, count, width)."""
        return self.book.draw(count, key)

    def penalty(self, z: Tensor) -> Tensor:
        return z.new_zeros(z.shape[:-1])

    def logs(self, z: Tensor) -> dict[str, Tensor]:
        """How many codes are `used`, and their `perplexity`."""
        return self.book.logs(z)
