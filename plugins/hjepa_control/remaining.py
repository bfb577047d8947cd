"""How much of the way is left, told where start and goal differ: a cost that neither fading nor being elsewhere lowers.

A model that does not know which of several states comes predicts their mean, in which what moves has faded. Squared distance falls with
it, and plans are drawn to where nothing can be foreseen. But where neither start nor goal has what moves, it does not matter how it
looks: only the places in which they differ are compared.
"""

from __future__ import annotations

from hjepa.contracts import Cost, NonNegative, Spec, States
from hjepa.nn.statistics import at_least_float32

TINY = 1e-12
"""What is divided by at least: where start and goal are the same, nothing is left."""


class Remaining:
    """The mean over the steps of a plan of |s - goal|^2, each token weighed by |start - goal|^2 there, as a share of what this is at the
    start: 1 there, 0 at the goal, and in between at all that is unlike both; 0 without a goal.

    best: weight of the least of these, beside their mean: a plan that passes the goal is worth something, though it is elsewhere at most
    of its steps.
    """

    def __init__(self, spec: Spec, *, best: NonNegative = 0.0) -> None:
        self.best = best

    def __call__(self, trajectory: States, goal: States | None, start: States) -> Cost:
        """Trajectory (R, K, N, D), goal and start (R, 1, N, D) -> (R,)."""
        tokens = at_least_float32(trajectory.tokens)
        if goal is None:
            nothing = tokens.new_zeros(len(tokens))
            return Cost(nothing, nothing)
        weight = (start.tokens - goal.tokens).square().mean(3)
        left = (weight * (tokens - goal.tokens).square().mean(3)).mean(2) / weight.square().mean(2).clamp(min=TINY)
        value = left.mean(1) + self.best * left.amin(1)
        return Cost(value, value.new_zeros(value.shape))
