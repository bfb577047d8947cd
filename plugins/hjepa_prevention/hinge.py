"""A margin between true and shuffled pairs: the hinge loss of energy-based models (LeCun et al. 2006)."""

from __future__ import annotations

from torch import Tensor, nn

from hjepa.contracts import Build, Count, Energy, Here, NonNegative, Pair, Positive, Spec
from hjepa.distributed import gather_rows
from hjepa.nn.projector import projected
from hjepa.nn.projector import projector as make_projector
from hjepa.nn.statistics import at_least_float32, without_autocast
from hjepa.randomness import integers


class Hinge(nn.Module):
    """max(0, margin + E(prediction, its target) - E(prediction, the target of another)).

    The other is another sample at the same step and token, or another row where rows are packed: all are turned by one distance,
    a new one at each step. A whole objective: the level's own energy may have weight 0, or be the same energy. It prevents
    complete collapse, where all energies are equal and it costs the whole margin, and an energy that is flat in its target. It
    prevents no dimensional collapse: once one direction tells samples apart by the margin, nothing pulls any more. With an energy
    that grows with the scale the margin can be met by scale alone.

    weight: of the term.
    margin: how much lower the energy of a true pair shall be.
    energy: a component; without one the mean squared distance over D.
    projector: widths of a perceptron that predictions and targets go through first.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        weight: NonNegative = 1.0,
        margin: Positive = 1.0,
        energy: Build[Energy] | None = None,
        projector: tuple[Count, ...] = (),
    ) -> None:
        super().__init__()
        self.weight, self.margin = weight, margin
        self.energy = energy(spec.giving(projected(spec.width, projector), spec.grid)) if energy else _squared_distance
        self.projector = make_projector(spec.width, projector)

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`margin`: what is missing to the margin, weighted."""
        prediction, target = (at_least_float32(self.projector(x)) for x in (pair.prediction, pair.target))
        with without_autocast(prediction):
            prediction, target = gather_rows(prediction), gather_rows(target)
            distance = int(integers(here.step_key, "distance", 1, max(2, len(target))))
            other = target.roll(distance, dims=0)
            missing = self.margin + self.energy(prediction, target) - self.energy(prediction, other)
            return {"margin": self.weight * missing.relu().mean()}


def _squared_distance(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean(-1)
