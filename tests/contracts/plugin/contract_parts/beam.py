"""Keeps the best few plans and tries every move after each of them (beam search)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hjepa.contracts import ActionSpace, Count, Plan, PlanningProblem
from hjepa.nn.states import followed
from hjepa.randomness import Key, uniform


class Beam:
    """width: plans that are kept; moves: drawn for each task where the space has no anchors."""

    def __init__(self, *, width: Count = 8, moves: Count = 16) -> None:
        self.width, self.moves = width, moves

    @torch.no_grad()
    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        moves, carry, found, beams = self._moves(problem.space, key), problem.begin(), None, 1
        plans = moves.new_zeros(problem.batch, 0, moves.shape[-1])
        for _ in range(problem.horizon):
            old = torch.arange(problem.batch * beams).repeat_interleave(moves.shape[1])
            tried = moves.repeat_interleave(beams, dim=0).flatten(0, 1)
            states, carry = problem.step(tree_map(lambda x, old=old: x[old], carry), tried)
            found = states if found is None else followed(found.rows(old), states)
            plans = torch.cat((plans[old], tried[:, None]), dim=1)
            cost = problem.cost(found)
            best = cost.order()[:, : self.width]
            beams = best.shape[1]
            rows = (best + torch.arange(problem.batch)[:, None] * cost.value.shape[1]).flatten()
            carry, found, plans = tree_map(lambda x, rows=rows: x[rows], carry), found.rows(rows), plans[rows]
        return Plan(plans[::beams], problem.cost(found.rows(torch.arange(0, len(plans), beams))))

    def _moves(self, space: ActionSpace, key: Key) -> Tensor:
        """(B, moves, A): the same for all tasks where there are anchors."""
        if space.anchors is not None:
            return space.anchors.expand(len(key.word), -1, -1)
        return space.low + (space.high - space.low) * uniform(key, "moves", (self.moves, len(space.low)))
