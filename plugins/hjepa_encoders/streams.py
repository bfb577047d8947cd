"""What an encoder of images reads: one stream with maps, and any number of streams of tokens beside it.

Where no stream has maps, tokens that lie in a plane are one: so a level reads the places of the one below. What a body feels of itself
(its velocity, say) is a stream of tokens beside the images: a single picture does not show it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from hjepa import nn as blocks
from hjepa.contracts import Spec, States


class Streams:
    """One stream or several, for `reader`, an encoder by name. ValueError where not exactly one of them has maps, or lies in a plane.

    Tokens that are not valid are read as zeros.
    """

    def __init__(self, reader: str, spec: Spec) -> None:
        parts = spec.parts or (spec,)
        found = [place for place, part in enumerate(parts) if part.maps] or [
            place for place, part in enumerate(parts) if _plane(part)
        ]
        if len(found) != 1:
            raise ValueError(_refusal(reader, spec, found))
        self.place = found[0]
        seen = parts[self.place]
        self.shape = seen.maps[0] if seen.maps else (seen.width, *seen.grid)
        """(C, H, W) of the finest map."""
        self.beside = sum(part.tokens * part.width for place, part in enumerate(parts) if place != self.place)
        """F, how many numbers a step the other streams give."""

    def maps(self, below: States) -> Tensor:
        """(B, T, C, H, W): the finest map."""
        seen = below.parts[self.place] if below.parts else below
        if seen.maps:
            return seen.maps[0]
        height, width = self.shape[1:]
        return rearrange(_read(seen), "b t (h w) d -> b t d h w", h=height, w=width)

    def joined(self, x: Tensor, below: States) -> Tensor:
        """What is seen at P places, x (B, T, P, D), and beside each place all tokens of the other streams: (B, T, P, D + F)."""
        if not self.beside:
            return x
        others = [_read(part).flatten(2) for place, part in enumerate(below.parts) if place != self.place]
        felt = torch.cat(others, dim=-1).to(x.dtype)[:, :, None]
        return torch.cat((x, felt.expand(*x.shape[:3], -1)), dim=-1)

    def linear(self, seen: int, outputs: int) -> nn.Linear:
        """A layer on what `joined` gives, where x is `seen` wide. At the start the streams beside count as much as what is seen."""
        layer = blocks.linear(seen + self.beside, outputs)
        if self.beside:
            with torch.no_grad():  # the few numbers of a body among thousands of places would hardly be in the token
                for part in (layer.weight[:, :seen], layer.weight[:, seen:]):
                    part *= (layer.in_features / (2 * part.shape[1])) ** 0.5
        return layer

    def normed(self, mean: Sequence[float], std: Sequence[float]) -> Normed:
        """What norms the channels of the map. ValueError where there is neither one number for all of them nor one for each."""
        channels = self.shape[0]
        for name, numbers in (("mean", mean), ("std", std)):
            if len(numbers) not in (1, channels):
                raise ValueError(f"pixel_{name} has {len(numbers)} numbers; write one, or one for each of {channels} channels")
        return Normed(mean, std)


class Normed(nn.Module):
    """(R, C, H, W) -> the same, each channel less its mean, as a multiple of its standard deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, numbers in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(numbers).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("mean")) / self.get_buffer("std")


def _plane(spec: Spec) -> bool:
    """Whether tokens lie as pixels do. Those of a window have time as their first axis."""
    return bool(spec.width) and len(spec.grid) == 2 and spec.window == 1


def _refusal(reader: str, spec: Spec, found: Sequence[int]) -> str:
    """Why what is given is not read, of which the streams at the places `found` could be."""
    parts = spec.parts or (spec,)
    folded = any(part.width and len(part.grid) == 3 and part.window > 1 for part in parts)
    hint = "; tokens that lie in a plane are read one step at a time, with `window: 1`" if folded and not found else ""
    if not spec.parts:
        return f"{reader} reads images, and what it is given has no maps{hint or '; latent_mlp reads tokens'}"
    alike = "have tokens in a plane" if found and not parts[found[0]].maps else "have maps"
    given = f"of the {len(parts)} streams that it is given {len(found) or 'none'} {alike}"
    return f"{reader} reads one stream of images and lays tokens of others beside it; {given}{hint}"


def _read(states: States) -> Tensor:
    return states.tokens if states.valid is None else states.tokens.masked_fill(~states.valid[..., None], 0)
