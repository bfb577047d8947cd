"""z is the learned code nearest to what an encoder says (VQ-VAE: van den Oord et al. 2017, arXiv 1711.00937, equation 3).

R(z) = 0 for a code, infinite for anything else
trained with |sg(e) - z|^2 + commitment * |e - sg(z)|^2, means over the width, where e is what the encoder says
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Fraction, NonNegative, Spec
from hjepa.distributed import gather_rows
from hjepa.randomness import Key, integers
from hjepa_latent.codebook import Codebook
from hjepa_latent.reader import Reader


class VQ(nn.Module):
    """One encoding instead of a search; the gradient of the prediction passes straight through the choice to the encoder.

    count: of codes; width: of each; hidden: width of the encoder's hidden layer; commitment: how much the encoder keeps to the codes;
    dead: codes chosen less often than this share of an even usage are put where the encoder is, at a row of the last batch.

    What it prevents: z says at most log2(count) bits a step. What it does not: the encoder need not find the code of least
    energy, so its energy is an upper bound of F, for true and for wrong targets. Samples are codes as often as they were
    chosen lately.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        count: Count = 8,
        width: Count = 8,
        hidden: Count = 128,
        commitment: NonNegative = 0.25,
        dead: Fraction = 0.05,
    ) -> None:
        super().__init__()
        self.width, self.commitment, self.dead = width, commitment, dead
        self.reader = Reader(spec, hidden, width)
        self.book = Codebook(count, width)
        self._said: list[Tensor] = []

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        """z (*shape, width), with the gradient of the encoder, and the loss of codes and encoder (*shape)."""
        said = self.reader(context, target)
        index = self.book.nearest(said)
        self.book.note(index)
        code = self.book.codes[index]
        if self.training:
            self._said.append(said.detach().flatten(0, -2))
        follows = (said.detach() - code).square().mean(dim=-1)
        commits = (said - code.detach()).square().mean(dim=-1)
        return code.detach() + (said - said.detach()), follows + self.commitment * commits

    def after_step(self, step: int) -> None:
        """Moves codes that nobody chooses."""
        if not self._said:
            return
        self.book.after_step(step)
        rows, count = gather_rows(torch.cat(self._said)), len(self.book.usage)
        chosen = integers(Key.of("revived", step, device=rows.device), "row", 0, len(rows), (count,))
        dead = self.book.usage < self.dead / count
        self.book.codes.copy_(torch.where(dead[:, None], rows[chosen], self.book.codes))
        self.book.usage.copy_(torch.where(dead, 1 / count, self.book.usage))
        self.book.usage.div_(self.book.usage.sum())
        self._said = []

    def sample(self, count: int, key: Key) -> Tensor:
        """(*key, count, width)."""
        return self.book.draw(count, key)

    def penalty(self, z: Tensor) -> Tensor:
        return z.new_zeros(z.shape[:-1])

    def logs(self, z: Tensor) -> dict[str, Tensor]:
        """How many codes are `used`, and their `perplexity`."""
        return self.book.logs(z)
