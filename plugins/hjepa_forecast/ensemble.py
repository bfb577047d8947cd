"""Several predictors, each trained on a share of its own of every batch: where they differ, nobody has seen what comes.

They learn from different samples and begin with different weights (Lakshminarayanan et al. 2017, arXiv:1612.01474); PLDM plans with
five of them, and pays for where they disagree (Sobal et al. 2025, arXiv:2502.14819).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from hjepa.contracts import Build, Spec, States, StepPredictor


class Carry(TypedDict):
    """What has been seen, and foreseen."""

    members: list[Any]
    """The carry of each predictor: of its share of the samples while training, else of all."""
    told: Tensor
    """(B, M, N, D): what each of M says comes next; while training, and before anything is foreseen, the same from all."""


class Ensemble(nn.Module):
    """Predicts the mean of what its members do, each of which goes on from its own prediction.

    members: two predictors or more, of any kinds that predict steps. While training, every one of them sees each second sample of a
    batch, or each third of three, and so on; so an ensemble costs no more to train than one of them, and learns more slowly.
    """

    def __init__(self, spec: Spec, *, members: Sequence[Build[StepPredictor]]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"an ensemble of {len(members)} never disagrees; write two members or more")
        self.spec = spec
        self.members = nn.ModuleList([member(spec) for member in members])  # type: ignore[misc]

    def forward(self, states: States, condition: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """(B, T-1, N, D): steps 1 to T-1, each from the true steps before it."""
        rows = self._rows(len(states.time), states.time.device)
        return self._told([
            member(states.rows(own), _of(condition, own), _of(z, own)) for member, own in zip(self.members, rows, strict=True)
        ]).mean(0)  # fmt: skip

    def start(self, states: States, condition: Tensor | None = None) -> Carry:
        """The carry that has seen all of `states`."""
        rows = self._rows(len(states.time), states.time.device)
        carries = [
            member.start(states.rows(own), _of(condition, own))  # type: ignore[operator]
            for member, own in zip(self.members, rows, strict=True)
        ]
        return {"members": carries, "told": states.tokens[:, -1:]}

    def step(
        self, carry: Carry, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Carry]:
        """action (B, A), condition (B, 1, C) or none for the one before, z (B, Z) -> the next step (B, N, D) and its carry."""
        rows = self._rows(len(carry["told"]), carry["told"].device)
        found = [
            member.step(own, _of(action, at), _of(condition, at), _of(z, at))  # type: ignore[operator]
            for member, own, at in zip(self.members, carry["members"], rows, strict=True)
        ]
        told = self._told([tokens for tokens, _ in found])
        return told.mean(0), {"members": [own for _, own in found], "told": told.transpose(0, 1)}

    def doubt(self, carry: Carry) -> Tensor:
        """(B, N): the variance of what the members told last, mean over D."""
        return carry["told"].float().var(dim=1, correction=0).mean(-1)

    def _rows(self, batch: int, device: torch.device) -> list[Tensor]:
        """The samples of each member."""
        rows, count = torch.arange(batch, device=device), len(self.members)
        return [rows[number::count] if self.training else rows for number in range(count)]

    def _told(self, parts: list[Tensor]) -> Tensor:
        """(M, B, ...): what each says of all samples; or, while training, (1, B, ...): what that one says whose sample it is."""
        if not self.training:
            return torch.stack(parts)
        rows = torch.cat(self._rows(sum(len(part) for part in parts), parts[0].device))
        return torch.cat(parts)[rows.argsort()][None]


def _of(lead: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if lead is None else lead[rows]
