"""How far from the goal a plan leads, in the latent space of a level: what every plan is made for (LeCun 2022; PLDM)."""

from __future__ import annotations

from typing import Literal

from hjepa.contracts import Cost, Positive, Spec, States
from hjepa.nn.statistics import at_least_float32


class Distance:
    """The mean squared difference of states and the goal's; 0 without a goal.

    steps: of all steps of a plan it is the mean, so that it pays to arrive early, or that of the `last`. saturation: beyond about this
    squared difference all is equally far, 1 - exp(-difference / saturation), so that a plan need not first come nearer to lead there;
    none without it.
    """

    def __init__(self, spec: Spec, *, steps: Literal["all", "last"] = "all", saturation: Positive | None = None) -> None:
        self.steps, self.saturation = steps, saturation

    def __call__(self, trajectory: States, goal: States | None, start: States) -> Cost:
        """Trajectory (R, K, N, D) and goal (R, 1, N, D) -> (R,)."""
        tokens = at_least_float32(trajectory.tokens if self.steps == "all" else trajectory.tokens[:, -1:])
        if goal is None:
            nothing = tokens.new_zeros(len(tokens))
            return Cost(nothing, nothing)
        away = (tokens - goal.tokens).square().mean((2, 3))
        if self.saturation is not None:
            away = 1 - (-away / self.saturation).exp()
        value = away.mean(1)
        return Cost(value, value.new_zeros(value.shape))
