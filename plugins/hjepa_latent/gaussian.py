"""z is Gaussian, and an encoder says which (variational inference: Kingma, Welling 2013, arXiv 1312.6114, equation 10).

R(z) = weight / 2 * |z|^2, the negative logarithm of the prior N(0, 1) up to a constant
trained with weight * KL(q(z | x, y) from N(0, 1)) = weight / 2 * sum(mean^2 + variance - 1 - log variance)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from hjepa.contracts import Count, NonNegative, Spec
from hjepa.randomness import Key, normal
from hjepa_latent.reader import Reader

FLOOR, CEILING = -7.0, 3.0
"""Of the logarithm of a standard deviation, so that no number overflows."""


class Gaussian(nn.Module):
    """In training z is drawn by its key (reparametrised), in evaluation mode it is the mean.

    width: of z; weight: of the divergence, the temperature 1 / beta; hidden: width of the encoder's hidden layer.

    Energy and divergence together are an upper bound of the soft free energy at beta = 1 / weight. What it prevents: each bit
    that z says beyond the prior costs `weight` times log 2, so z says what lowers the energy by more, and samples of the
    prior are what predictions were trained with. What it does not: with a large weight z says nothing (posterior collapse), and
    futures become their mean; with a small one z carries everything.
    """

    def __init__(self, spec: Spec, *, width: Count = 2, weight: NonNegative = 0.01, hidden: Count = 128) -> None:
        super().__init__()
        self.width, self.weight = width, weight
        self.reader = Reader(spec, hidden, 2 * width)

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        """z (*shape, width), with the gradient of the encoder, and the weighted divergence (*shape)."""
        mean, spread = self.reader(context, target).chunk(2, dim=-1)
        spread = spread.clamp(FLOOR, CEILING)
        divergence = (mean.square() + (2 * spread).exp() - 1 - 2 * spread).sum(dim=-1) / 2
        if not self.training:
            return mean, self.weight * divergence
        noise = normal(key, "z", (*mean.shape[key.word.ndim : -1], self.width))
        return mean + spread.exp() * noise, self.weight * divergence

    def sample(self, count: int, key: Key) -> Tensor:
        """(*key, count, width), from N(0, 1)."""
        return normal(key, "prior", (count, self.width))

    def penalty(self, z: Tensor) -> Tensor:
        return self.weight / 2 * z.square().sum(dim=-1)
