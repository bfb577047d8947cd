"""How much nearer a plan is to the goal than to where it began: a cost that uncertainty does not lower.

A model that does not know which of several states comes predicts their mean, and a mean is nearer to everything than what it is the mean
of: where squared distance to the goal is the cost, plans are drawn to where nothing can be foreseen (along walls, where a dot
fades). The difference of two squared distances is linear in the state, so that the cost of the mean is the mean of the costs.
"""

from __future__ import annotations

from hjepa.contracts import Cost, Spec, States
from hjepa.nn.statistics import at_least_float32


class Nearer:
    """The mean over the steps of a plan of |s - goal|^2 - |s - first|^2, squares taken as means over N and D, where `first` is the state
    that its first step leads to; |first - goal|^2 there, 0 without a goal.

    What differs neither from goal nor from start counts nothing: states of places suit it, where elsewhere is unlike here. Of states
    in which everything lies on a line, it would lead past the goal.
    """

    def __init__(self, spec: Spec) -> None:
        pass

    def __call__(self, trajectory: States, goal: States | None) -> Cost:
        """Trajectory (R, K, N, D) and goal (R, 1, N, D) -> (R,)."""
        tokens = at_least_float32(trajectory.tokens)
        if goal is None:
            nothing = tokens.new_zeros(len(tokens))
            return Cost(nothing, nothing)
        first, wanted = tokens[:, 0], goal.tokens[:, 0]
        mean = tokens.mean(1)
        value = ((wanted - first) * (wanted + first - 2 * mean)).mean((1, 2))
        return Cost(value, value.new_zeros(value.shape))
