"""A window of states below -> one token a step, by a multilayer perceptron on all of its tokens together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hjepa.contracts import Count, Features, Spec, States
from hjepa.nn import MLP


class LatentMLP(nn.Module):
    """A multilayer perceptron over the window. No norm comes after it, so that states that shrink are seen to shrink.

    width: of the token; hidden: of the layers between; depth: how many of them. Tokens that are not valid are read as zeros.
    """

    def __init__(self, spec: Spec, *, width: Count = 64, hidden: Count = 256, depth: Count = 2) -> None:
        super().__init__()
        if not spec.width:
            given = "several streams" if spec.parts else "maps only" if spec.maps else "no tokens"
            reader = "an encoder that fuses streams" if spec.parts else "conv"
            raise ValueError(f"latent_mlp reads tokens, and it is given {given}; {reader} reads such")
        self.layers = MLP(spec.tokens * spec.width, hidden, width, depth)
        self.spec = spec.giving(width)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        """below.tokens (B, T, W*N, D) -> tokens (B, T, 1, width). ValueError for any layer: none has a name."""
        if layers:
            raise ValueError(f"latent_mlp has no layer {', '.join(layers)}; it has none that can be asked for")
        tokens = below.tokens
        if below.valid is not None:
            tokens = tokens.masked_fill(~below.valid[..., None], 0)
        return Features(self.layers(tokens.flatten(2))[:, :, None])
