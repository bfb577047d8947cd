"""Targets from the level's own encoder, cut from the graph (SimSiam, arXiv 2011.10566)."""

from __future__ import annotations

from torch import nn

from hjepa.contracts import Here, Spec, States


class StopGradient(nn.Module):
    """Predictions learn to reach the states; the states do not come to meet them.

    It slows collapse down and does not exclude it: a constant state is still a perfect prediction, complete and dimensional
    collapse both stay minima, and what keeps training away from them is the predictor between the two. Watch the verdict.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()

    def targets(self, here: Here) -> States:
        """The level's own states, detached."""
        return here.states.detached()
