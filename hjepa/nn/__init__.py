"""Building blocks for authors of components: attention, positions, transformer blocks. Nothing here knows a study."""

from hjepa.nn.attention import Attend, BlockCausal, Mask, Sets, attend
from hjepa.nn.blocks import MLP, AdaptiveNorm, Block, Past, PlainNorm, SelfAttention, linear
from hjepa.nn.positions import grid_positions, rotate, rotation, sincos

__all__ = [
    "MLP",
    "AdaptiveNorm",
    "Attend",
    "Block",
    "BlockCausal",
    "Mask",
    "Past",
    "PlainNorm",
    "SelfAttention",
    "Sets",
    "attend",
    "grid_positions",
    "linear",
    "rotate",
    "rotation",
    "sincos",
]
