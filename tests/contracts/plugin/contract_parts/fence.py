"""No step of a trajectory may be within a box: a guardrail."""

from __future__ import annotations

from hjepa.contracts import Cost, Spec, States


class Fence:
    """low, high: two corners of the box, in the dimensions of the state."""

    def __init__(self, spec: Spec, *, low: tuple[float, ...], high: tuple[float, ...]) -> None:
        self.low, self.high = low, high

    def __call__(self, trajectory: States, goal: States | None, start: States) -> Cost:
        tokens = trajectory.tokens
        inside = ((tokens > tokens.new_tensor(self.low)) & (tokens < tokens.new_tensor(self.high))).all(dim=-1)
        violation = inside.float().sum(dim=(1, 2))
        return Cost(violation.new_zeros(violation.shape), violation)
