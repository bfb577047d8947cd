"""How far from the goal a plan leads, in the latent space of a level: what every plan is made for (LeCun 2022; PLDM)."""

from __future__ import annotations

from typing import Literal

from hjepa.contracts import Cost, Positive, Spec, States
from hjepa.nn.statistics import at_least_float32


class Distance:
    """The mean squared difference of states and the goal's; 0 without a goal.

    steps: of all steps of a plan it is the mean, so that it pays to arrive early, or that of the `last`. saturation: beyond about this
    squared difference all is equally far, 1 - exp(-(difference / saturation)^sharpness), so that a plan need not first come nearer to
    lead there; none without it. sharpness: the larger, the less counts how far it is beyond: what differs there is often how faint a
    state is, not where.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        steps: Literal["all", "last"] = "all",
        saturation: Positive | None = None,
        sharpness: Positive = 1.0,
    ) -> None:
        self.steps, self.saturation, self.sharpness = steps, saturation, sharpness

    def __call__(self, trajectory: States, goal: States | None) -> Cost:
        """Trajectory (R, K, N, D) and goal (R, 1, N, D) -> (R,)."""
        tokens = at_least_float32(trajectory.tokens if self.steps == "all" else trajectory.tokens[:, -1:])
        if goal is None:
            nothing = tokens.new_zeros(len(tokens))
            return Cost(nothing, nothing)
        away = (tokens - goal.tokens).square().mean((2, 3))
        if self.saturation is not None:
            away = 1 - (-((away / self.saturation) ** self.sharpness)).exp()
        value = away.mean(1)
        return Cost(value, value.new_zeros(value.shape))
