"""A level that says how the map of one step must flow to become that of the step before (the motion branch of MC-JEPA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa.contracts import Build, Encoder, Energy, Here, Outcome, Pair, Prevention, Spec, States
from hjepa.nn.preventions import Preventions
from hjepa.nn.states import states_of


class Motion(nn.Module):
    """Reads the finest map of its encoder."""

    def __init__(
        self, spec: Spec, *, encoder: Build[Encoder], energy: Build[Energy], prevention: Sequence[Build[Prevention]] = ()
    ) -> None:
        super().__init__()
        self.encoder = encoder(spec)
        self.spec = spec.encoded(self.encoder.spec)
        self.estimate = nn.Conv2d(2 * self.spec.maps[0][0], 2, kernel_size=3, padding=1)
        self.energy, self.preventions = energy(self.spec), Preventions(self.spec, prevention)
        self.preventions.bind(self.encoder)
        self.needs = 2

    def encode(self, below: States) -> States:
        return states_of(self.encoder, below)

    def forward(self, here: Here) -> Outcome:
        states = here.states
        now, later = (states.maps[0][:, steps].flatten(0, 1) for steps in (slice(None, -1), slice(1, None)))
        moved = warped(later, self.estimate(torch.cat((now, later), dim=1)))
        energy = self._energy(moved, now).view(len(states.time), -1)
        trivial = self._energy(later, now).view_as(energy).detach()
        pair = Pair(moved.movedim(1, -1), now.movedim(1, -1), states.tokens)
        terms = {"flow": energy.mean(), **self.preventions.terms(pair, here)}
        return Outcome(energy, trivial, terms, {"states": states.tokens.detach().flatten(0, 2)})

    def _energy(self, one: Tensor, other: Tensor) -> Tensor:
        """(R, C, H, W) each -> (R,)."""
        return self.energy(one.movedim(1, -1), other.movedim(1, -1)).mean(dim=(1, 2))


def warped(image: Tensor, flow: Tensor) -> Tensor:
    """image (R, C, H, W) as seen from where flow (R, 2, H, W), in pixels, points to."""
    height, width = image.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack((columns, rows), dim=-1).to(flow) + flow.movedim(1, -1)
    scale = at.new_tensor([width - 1, height - 1])
    return F.grid_sample(image, 2 * at / scale - 1, padding_mode="border", align_corners=True)
