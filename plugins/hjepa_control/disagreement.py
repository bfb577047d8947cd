"""What nobody can foresee costs: how far apart predictors are that were trained on different samples (PLDM, arXiv:2502.14819)."""

from __future__ import annotations

from hjepa.contracts import Cost, Spec, States
from hjepa.errors import Mistake


class Disagreement:
    """The variance of what the members of an ensemble foresee, mean over tokens and the steps of a plan.

    A planner finds where a model is wrong in its favour. Members that have not seen what comes there are wrong in different ways.
    """

    def __init__(self, spec: Spec) -> None:
        pass

    def __call__(self, trajectory: States, goal: States | None, start: States) -> Cost:
        """Trajectory (R, K, N, D) -> (R,). Mistake where the predictor of the level says nothing of its doubt."""
        if trajectory.doubt is None:
            raise Mistake("disagreement is that of several predictors, and this level has one; use the predictor ensemble")
        value = trajectory.doubt.mean((1, 2))
        return Cost(value, value.new_zeros(value.shape))
