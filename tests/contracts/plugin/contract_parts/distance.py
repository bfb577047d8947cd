"""How far the end of a trajectory is from the goal."""

from __future__ import annotations

from hjepa.contracts import Cost, Spec, States


class Distance:
    """Mean squared difference; 0 without a goal."""

    def __init__(self, spec: Spec) -> None:
        pass

    def __call__(self, trajectory: States, goal: States | None) -> Cost:
        end = trajectory.tokens[:, -1]
        value = end.new_zeros(len(end)) if goal is None else (end - goal.tokens[:, -1]).square().mean(dim=(1, 2))
        return Cost(value, value.new_zeros(value.shape))
