"""Beam search: the best few plans are kept, and every move is tried after each of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hjepa.contracts import Count, Plan, PlanningProblem, States
from hjepa.nn.population import anywhere, order
from hjepa.nn.states import followed
from hjepa.randomness import Key


class Beam:
    """width: plans that are kept; moves: how many are tried after each, drawn for each task and step; where the space has anchors, these
    are drawn, and all of them are tried if they are no more than that.

    The cost of a plan is asked for at each of its steps, and must mean something there.
    """

    def __init__(self, *, width: Count = 8, moves: Count = 16) -> None:
        self.width, self.moves = width, moves

    @torch.no_grad()
    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        """The best of the plans that are left at the end."""
        carry, trajectory, beams = problem.begin(), None, 1
        plans = problem.space.low.new_zeros(problem.batch, 0, len(problem.space.low))
        for step in range(problem.horizon):
            moves = self._moves(problem, key.fold(step))
            old = torch.arange(problem.batch * beams, device=moves.device).repeat_interleave(moves.shape[1])
            tried = moves.repeat_interleave(beams, dim=0).flatten(0, 1)
            states, carry = problem.step(_chosen(carry, old), tried)
            trajectory = states if trajectory is None else followed(trajectory.rows(old), states)
            plans = torch.cat((plans[old], tried[:, None]), dim=1)
            rows, beams = self._best(problem, trajectory)
            carry, trajectory, plans = _chosen(carry, rows), trajectory.rows(rows), plans[rows]
        assert trajectory is not None
        return Plan(plans[::beams], problem.cost(trajectory.rows(torch.arange(0, len(plans), beams, device=plans.device))))

    def _moves(self, problem: PlanningProblem, key: Key) -> Tensor:
        """(B, moves, A)."""
        anchors = problem.space.anchors
        if anchors is not None and len(anchors) <= self.moves:
            return anchors.expand(problem.batch, -1, -1)
        return anywhere(problem.space, key, "moves", (self.moves,))

    def _best(self, problem: PlanningProblem, trajectory: States) -> tuple[Tensor, int]:
        """The rows of the plans that are kept, best first, and how many there are for each task."""
        cost = problem.cost(trajectory)
        best = order(cost)[:, : self.width]
        tasks = torch.arange(problem.batch, device=best.device)[:, None]
        return (best + tasks * cost.value.shape[1]).flatten(), best.shape[1]


def _chosen(carry: object, rows: Tensor) -> object:
    return tree_map(lambda x: x[rows], carry)
