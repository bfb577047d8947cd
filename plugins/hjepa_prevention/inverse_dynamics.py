"""Inverse dynamics (Pathak et al. 2017, arXiv 1705.05363; PLDM, arXiv 2502.14819): two consecutive states tell what was done."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hjepa.contracts import Count, Here, NonNegative, Pair, Spec
from hjepa.nn import MLP
from hjepa.nn.projector import projected
from hjepa.nn.projector import projector as make_projector
from hjepa.nn.statistics import at_least_float32, row_mean


class InverseDynamics(nn.Module):
    """The mean squared error of an action read by a perceptron from the states before and after it.

    It prevents complete collapse, as equal states tell no action, and keeps what actions move from being forgotten. It protects
    nothing else: dimensions beyond those that tell the action may collapse, and so may all that moves by itself. Actions receive
    no gradient, so that learned macro-actions are not made easy to read by making them equal.

    weight: of the term; PLDM has about 1.
    hidden: width of the perceptron's two hidden layers.
    tokens: those of a step are `joined`, so that it counts where they lie, or their `mean` is taken, which is small for many.
    projector: widths of a perceptron that every token goes through first.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        weight: NonNegative = 1.0,
        hidden: Count = 128,
        tokens: Literal["joined", "mean"] = "joined",
        projector: tuple[Count, ...] = (),
    ) -> None:
        super().__init__()
        if not spec.actions:
            raise ValueError("inverse dynamics read actions from states, and this level has no actions")
        self.weight, self.tokens = weight, tokens
        self.projector = make_projector(spec.width, projector)
        width = projected(spec.width, projector) * (spec.tokens if tokens == "joined" else 1)
        self.read = MLP(2 * width, hidden, spec.actions, depth=2)

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """`action`: the error, weighted; 0 where there is one step only."""
        states = here.states
        assert states.actions is not None, "the spec said that there are some"
        seen = self.projector(states.tokens)
        seen = seen.flatten(2) if self.tokens == "joined" else seen.mean(2)
        told = self.read(torch.cat((seen[:, :-1], seen[:, 1:]), dim=-1))
        error = at_least_float32(told) - at_least_float32(states.actions.detach())
        return {"action": self.weight * row_mean(error.square())}
