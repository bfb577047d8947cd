"""z is one of a few learned codes; the one of least energy is found by trying all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Spec
from hjepa.randomness import Key, integers


class Codes(nn.Module):
    """count: of codes; width: of each."""

    def __init__(self, spec: Spec, *, count: Count = 4, width: Count = 3) -> None:
        super().__init__()
        self.width = width
        self.codes = nn.Parameter(torch.randn(count, width))

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            energies = torch.stack([energy_of_z(code.expand(*target.shape[:-2], -1)) for code in self.codes])
        z = self.codes[energies.argmin(dim=0)]
        return z, self.penalty(z)

    def sample(self, count: int, key: Key) -> Tensor:
        return self.codes[integers(key, "code", 0, len(self.codes), (count,))]

    def penalty(self, z: Tensor) -> Tensor:
        return z.new_zeros(z.shape[:-1])
