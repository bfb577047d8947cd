"""How much nearer a plan is to the goal than to where it began: a cost that uncertainty does not lower.

A model that does not know which of several states comes predicts their mean, and a mean is nearer to everything than what it is the mean
of: where squared distance to the goal is the cost, plans are drawn to where nothing can be foreseen (along walls, where a dot
fades). The difference of two squared distances is linear in the state, so that the cost of the mean is the mean of the costs.
"""

from __future__ import annotations

from hjepa.contracts import Cost, NonNegative, Spec, States
from hjepa.nn.statistics import at_least_float32


class Nearer:
    """The mean over the steps of a plan of |s - goal|^2 - |s - first|^2, squares taken as means over N and D, where `first` is the state
    that its first step leads to; |first - goal|^2 there, 0 without a goal.

    best: weight of the least of these, beside their mean: a plan that passes the goal is worth something, though it is elsewhere at most
    of its steps.

    What differs neither from goal nor from start counts nothing: states of places suit it, where elsewhere is unlike here. Of states
    in which everything lies on a line, it would lead past the goal.
    """

    def __init__(self, spec: Spec, *, best: NonNegative = 0.0) -> None:
        self.best = best

    def __call__(self, trajectory: States, goal: States | None) -> Cost:
        """Trajectory (R, K, N, D) and goal (R, 1, N, D) -> (R,)."""
        tokens = at_least_float32(trajectory.tokens)
        if goal is None:
            nothing = tokens.new_zeros(len(tokens))
            return Cost(nothing, nothing)
        first = tokens[:, :1]
        away = ((goal.tokens - first) * (goal.tokens + first - 2 * tokens)).mean((2, 3))
        value = away.mean(1) + self.best * away.amin(1) if self.best else away.mean(1)
        return Cost(value, value.new_zeros(value.shape))
