"""Temporal similarity (PLDM, arXiv 2502.14819; EB-JEPA, arXiv 2602.03604): states change little from one step to the next."""

from __future__ import annotations

from torch import Tensor, nn

from hjepa.contracts import Count, Here, NonNegative, Pair, Spec
from hjepa.nn.projector import projector as make_projector
from hjepa.nn.statistics import at_least_float32, row_mean


class TemporalSimilarity(nn.Module):
    """The mean squared difference of each state and the next.

    It prevents no collapse. Alone it is minimised by collapse, as the prediction of states is: equal states do not change. Beside
    terms that keep states spread (`vicreg`, `inverse_dynamics`) it makes them smooth, and so of use to planners; too strong, it
    leaves only what never changes.

    weight: of the term; PLDM has 0.7 to std 3 and cov 7, EB-JEPA 12 to std 16 and cov 8.
    projector: widths of a perceptron that every token goes through first.
    """

    def __init__(self, spec: Spec, *, weight: NonNegative = 1.0, projector: tuple[Count, ...] = ()) -> None:
        super().__init__()
        self.weight = weight
        self.projector = make_projector(spec.width, projector)

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`change`: the mean squared change over D, weighted; 0 where there is one step only."""
        states = at_least_float32(self.projector(here.states.tokens))
        return {"change": self.weight * row_mean((states[:, 1:] - states[:, :-1]).square())}
