"""What must be refused: a clip that was looked at both ways, given out as if its steps had not seen its end."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from hjepa.contracts import Build, Encoder, Here, Outcome, Spec, States


class Unfolded(nn.Module):
    """Time within the clip becomes steps, all stamped with its last tick."""

    def __init__(self, spec: Spec, *, encoder: Build[Encoder]) -> None:
        super().__init__()
        self.encoder = encoder(spec)
        made = spec.encoded(self.encoder.spec)
        self.spec = replace(made, grid=made.grid[1:], ticks=tuple(tick for tick in made.ticks for _ in range(made.grid[0])))
        self.needs = 1

    def encode(self, below: States) -> States: ...

    def forward(self, here: Here) -> Outcome: ...
