"""The sum of a chunk of actions as one macro-action: where steps add up, it says how far they lead (HWM's Wall, arXiv:2604.03208)."""

from __future__ import annotations

from einops import reduce
from torch import Tensor, nn

from hjepa.contracts import ActionSpace, Spec, Whole
from hjepa_forecast.anchors import Anchors, width_of_one


class Sum(nn.Module):
    """As wide as one action, and nothing is learned. anchors: how many chunks of the training data plans are made of, 0 for any plan."""

    def __init__(self, spec: Spec, *, anchors: Whole = 256) -> None:
        super().__init__()
        self.width, self.joined = width_of_one(spec, "sum"), spec.joined
        self.anchors = Anchors(anchors, spec.actions)

    def forward(self, chunk: Tensor) -> Tensor:
        """(..., J*A) -> (..., A)."""
        self.anchors.keep(chunk)
        return self._sum(chunk)

    def space(self, chunk: ActionSpace) -> ActionSpace:
        """The sums of chunks that were seen; before any, all between the sums of the bounds."""
        return self.anchors.space(self._sum, ActionSpace(self._sum(chunk.low), self._sum(chunk.high)))

    def _sum(self, chunk: Tensor) -> Tensor:
        return reduce(chunk, "... (joined width) -> ... width", "sum", joined=self.joined)
