"""A chunk of actions -> one macro-action of a few dimensions, by a perceptron on all of them together (HWM's maze, arXiv:2604.03208).

Few dimensions are a prior: what can be said with them is what can be reached. Four serve waypoints best (HWM, figure 7).
"""

from __future__ import annotations

from torch import Tensor, nn

from hjepa.contracts import ActionSpace, Count, Spec, Whole
from hjepa.nn import MLP
from hjepa_forecast.anchors import Anchors, between, width_of_one


class MacroMLP(nn.Module):
    """Within -1 and 1, by tanh. width: of the macro-action; hidden: of the layers between; depth: how many of them; anchors: how many
    chunks of the training data plans are made of, 0 for any plan.
    """

    def __init__(self, spec: Spec, *, width: Count = 4, hidden: Count = 32, depth: Count = 2, anchors: Whole = 256) -> None:
        super().__init__()
        width_of_one(spec, "mlp")
        self.width = width
        self.layers = MLP(spec.actions, hidden, width, depth)
        self.anchors = Anchors(anchors, spec.actions)

    def forward(self, chunk: Tensor) -> Tensor:
        """(..., J*A) -> (..., width)."""
        self.anchors.keep(chunk)
        return self._encoded(chunk)

    def space(self, chunk: ActionSpace) -> ActionSpace:
        """The macro-actions of chunks that were seen; before any, all there can be."""
        return self.anchors.space(self._encoded, between(-1.0, 1.0, self.width, chunk.low))

    def _encoded(self, chunk: Tensor) -> Tensor:
        out: Tensor = self.layers(chunk)
        return out.tanh()
