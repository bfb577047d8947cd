"""The states below as they are: for features that are already made, and for asking what an encoder adds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hjepa.contracts import Features, Spec, States


class Identity(nn.Module):
    """Passes on tokens and maps. Of a window of several steps it keeps the last one."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        if spec.parts:
            raise ValueError("identity passes on one stream, and it is given several; an encoder that fuses streams reads such")
        self.window = spec.window
        maps = tuple((channels // spec.window, height, width) for channels, height, width in spec.maps)
        self.spec = spec.giving(spec.width, spec.grid[1:] if spec.window > 1 else spec.grid, maps)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        """below.tokens (B, T, W*N, D) -> (B, T, N, D), maps (B, T, W*C, H, W') -> (B, T, C, H, W')."""
        if layers:
            raise ValueError(f"identity has no layer {', '.join(layers)}; it has none that can be asked for")
        tokens = below.tokens[:, :, below.tokens.shape[2] * (self.window - 1) // self.window :]
        maps = tuple(m[:, :, m.shape[2] * (self.window - 1) // self.window :] for m in below.maps)
        return Features(tokens, maps)
