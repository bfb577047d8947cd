"""Images and clips -> a token for each patch, by a vision transformer (Dosovitskiy et al. 2021) without class token.

Of a clip, a patch goes through `tubelet` frames (Arnab et al. 2021, ViViT). Positions are fixed: sines and cosines that are added
to the tokens (I-JEPA, Assran et al. 2023), or a rotation of queries and keys along each axis (V-JEPA 2, Assran et al. 2025). So any
size that the patch divides can be read, and a subset of the patches is read like all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hjepa.contracts import Attention, Build, Count, Features, Packed, Positive, Spec, States, Whole, by_name
from hjepa.nn import Block, BlockCausal, Mask, Sets, grid_positions, linear, rotation, sincos
from hjepa.nn.packing import led, padded, taken

Size = Literal["tiny", "small", "base", "large", "huge", "giant"]


class Shape(NamedTuple):
    """Of the transformer."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


SIZES: dict[Size, Shape] = {
    "tiny": Shape(192, 12, 3),
    "small": Shape(384, 12, 6),
    "base": Shape(768, 12, 12),
    "large": Shape(1024, 24, 16),
    "huge": Shape(1280, 32, 16),
    "giant": Shape(1408, 40, 16, 48 / 11),
}


class ViT(nn.Module):
    """A transformer on the patches of the finest map that it reads, of all frames of its window together.

    size: `tiny` (192 wide, 12 blocks, 3 heads), `small` (384, 12, 6), `base` (768, 12, 12), `large` (1024, 24, 16),
    `huge` (1280, 32, 16) or `giant` (1408, 40, 16); width, depth, heads, mlp_ratio: each instead of that of the size;
    patch: pixels of a patch's side; tubelet: frames that a token sees;
    rotary: positions turn queries and keys, instead of being added to the tokens;
    registers: learned tokens that all others can write to, dropped at the end (Darcet et al. 2024);
    block_causal: tokens see those of their own frames and of those before, and none that come later;
    pixel_mean, pixel_std: of all pixels, which are normed by them: where they vary little, what they show is drowned by positions;
    attention: what computes it. The layers that can be asked for are `block1`, `block2`, ...: tokens before the last norm.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        size: Size = "tiny",
        width: Count | None = None,
        depth: Count | None = None,
        heads: Count | None = None,
        mlp_ratio: Positive | None = None,
        patch: Count = 16,
        tubelet: Count = 1,
        rotary: bool = False,
        registers: Whole = 0,
        block_causal: bool = False,
        pixel_mean: float = 0.0,
        pixel_std: Positive = 1.0,
        attention: Build[Attention] = by_name("auto"),
    ) -> None:
        super().__init__()
        if not spec.maps:
            raise ValueError("vit reads images, and what it is given has no maps; latent_mlp reads tokens")
        if registers and block_causal:
            raise ValueError("registers look at all frames, and with block_causal no token may: leave one of them out")
        usual, grid = SIZES[size], _grid(spec, patch, tubelet)
        width, depth, heads = width or usual.width, depth or usual.depth, heads or usual.heads
        self.head = width // heads if rotary else 0
        _place(self.head or width, len(grid))
        self.patch, self.causal = patch, BlockCausal(grid[-1] * grid[-2]) if block_causal else None
        self.pixels = pixel_mean, pixel_std
        self.embed = linear(spec.maps[0][0] // spec.window * tubelet * patch**2, width)
        self.registers = nn.Parameter(nn.init.normal_(torch.empty(registers, width), std=0.02))
        ratio, attend = mlp_ratio or usual.mlp_ratio, attention()
        self.blocks = nn.ModuleDict({f"block{n + 1}": Block(width, heads, depth, ratio, attend=attend) for n in range(depth)})
        self.norm = nn.LayerNorm(width)
        self.spec = spec.giving(width, grid)

    def forward(self, below: States, layers: Sequence[str] = ()) -> Features:
        """below.maps[0] (B, T, W*C, H, W') -> tokens (B, T, N, D), N = frames x rows x columns of patches.

        ValueError for a layer that does not exist.
        """
        if unknown := [layer for layer in layers if layer not in self.blocks]:
            raise ValueError(f"vit has no layer {', '.join(unknown)}; it has block1 to block{len(self.blocks)}")
        positions = grid_positions(self.spec.grid, below.maps[0].device)
        tokens = self._embedded(self._patches(below), positions)
        x, ahead, asked = tokens.flatten(0, 1), len(self.registers), {}
        if ahead:
            x = torch.cat((self.registers.expand(len(x), -1, -1), x), dim=1)
        by = self._turns(F.pad(positions, (0, 0, ahead, 0)))
        for name, block in self.blocks.items():
            x = block(x, self.causal, by)
            if name in layers:
                asked[name] = x[:, ahead:].view_as(tokens)
        return Features(self.norm(x[:, ahead:]).view_as(tokens), layers=asked)

    def encode_kept(self, below: States, keep: Packed) -> Packed:
        """The same of the kept patches alone: the others are gone before they are embedded."""
        x = self._embedded(taken(self._patches(below), keep).values, keep.positions)
        x, mask, by, own = (self._packed if self.causal is None else self._beside)(replace(keep, values=x))
        for block in self.blocks.values():
            x = block(x, mask, by)
        return replace(keep, values=self.norm(x[own]))

    def _patches(self, below: States) -> Tensor:
        """(B, T, N, pixels of a patch)."""
        pattern = "b t (s f) (h p) (w q) -> b t (s h w) (f p q)"
        channels = self.embed.in_features // self.patch**2
        return rearrange((below.maps[0] - self.pixels[0]) / self.pixels[1], pattern, f=channels, p=self.patch, q=self.patch)

    def _embedded(self, patches: Tensor, positions: Tensor) -> Tensor:
        """(..., M, pixels) -> (..., M, D)."""
        x: Tensor = self.embed(patches)
        return x if self.head else x + sincos(positions, self.spec.width)

    def _turns(self, positions: Tensor) -> Tensor | None:
        return rotation(positions, self.head) if self.head else None

    def _packed(self, kept: Packed) -> tuple[Tensor, Mask, Tensor | None, Any]:
        """All sets in one sequence: the tokens, which see which, how positions turn them, and which are not registers."""
        own: Tensor | slice = slice(None)
        if len(self.registers):
            kept, own = led(kept, self.registers)
        return kept.values[None], Sets(kept.lengths), self._turns(kept.positions), (0, own)

    def _beside(self, kept: Packed) -> tuple[Tensor, Mask, Tensor | None, Any]:
        """The same with the sets side by side, where time matters within them; padding sees itself, and nobody sees it."""
        x, there = padded(kept)
        positions, _ = padded(replace(kept, values=kept.positions))
        time = positions[..., 0]
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        mask = (time[:, :, None] >= time[:, None]) & there[:, None] | itself
        return x, mask[:, None], self._turns(positions[:, None]), there


def _grid(spec: Spec, patch: int, tubelet: int) -> tuple[int, ...]:
    """(H, W) in patches, of a clip (T, H, W)."""
    _, height, breadth = spec.maps[0]
    if height % patch or breadth % patch:
        rest = [side for side in dict.fromkeys((height, breadth)) if side % patch]
        raise ValueError(f"{height} x {breadth} pixels cannot be cut into patches of {patch}: {_sums(rest, patch)}")
    if spec.window % tubelet:
        frames = "1 frame" if spec.window == 1 else f"{spec.window} frames"
        raise ValueError(f"{frames} cannot be cut into tubelets of {tubelet}: {_sums([spec.window], tubelet)}")
    place = (height // patch, breadth // patch)
    return place if spec.window == 1 else (spec.window // tubelet, *place)


def _sums(wholes: list[int], part: int) -> str:
    return ", ".join(f"{whole} = {whole // part} * {part} + {whole % part}" for whole in wholes)


def _place(channels: int, axes: int) -> None:
    """Each axis needs a pair of channels, of a token or, where positions turn, of a head."""
    if channels % 2 or channels < 2 * axes:
        raise ValueError(f"{axes} axes of positions need an even number of channels, at least {2 * axes}; here are {channels}")
