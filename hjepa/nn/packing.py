"""Token sets of different sizes (`Packed`): choosing them, taking features at them, computing on them, and means over them."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa.contracts import Packed
from hjepa.nn.positions import grid_positions
from hjepa.randomness import Key


def row_keys(key: Key, time: Tensor) -> Key:
    """One key a sample (B,), and the ticks (B, T) of its steps -> one key a row (B*T,), whatever the steps beside it."""
    return Key(Key(key.word[:, None]).fold(time).word.flatten())


def packed(chosen: Tensor, grid: tuple[int, ...], family: str = "") -> Packed:
    """chosen (B*T, N) -> a set for each row: the flat indices (M, 1) of the tokens that are chosen, in order."""
    index = chosen.nonzero()[:, 1]
    positions = grid_positions(grid, chosen.device)[index]
    row = torch.arange(len(chosen), device=chosen.device)
    return Packed(index[:, None], chosen.sum(dim=1), positions, row, family)


def sets(of: Packed) -> Tensor:
    """(M,): which set each token is in."""
    numbers = torch.arange(len(of.lengths), device=of.lengths.device)
    return numbers.repeat_interleave(of.lengths, output_size=len(of.values))


def taken(tokens: Tensor, at: Packed) -> Packed:
    """tokens (B, T, N, D) -> those at the flat indices of `at`, (M, D)."""
    return replace(at, values=tokens.flatten(0, 1)[at.row[sets(at)], at.values[:, 0]])


def padded(of: Packed) -> tuple[Tensor, Tensor]:
    """The values of each set side by side (sets, L, D), zeros behind them, and where they are (sets, L).

    For what mixes the tokens of a set: `mask[:, None, None]` lets them see one another and no padding, `x[mask]` packs again.
    """
    length = int(of.lengths.max())
    mask = torch.arange(length, device=of.lengths.device) < of.lengths[:, None]
    values = of.values.new_zeros(*mask.shape, of.values.shape[-1])
    values[mask] = of.values
    return values, mask


def led(of: Packed, by: Tensor) -> tuple[Packed, Tensor]:
    """Each set with the same tokens `by` (R, D) before its own, at the origin; and where its own (M,) are then."""
    count = len(of.lengths)
    order = torch.cat((torch.arange(count, device=by.device).repeat_interleave(len(by)), sets(of))).argsort(stable=True)
    values = torch.cat((by.repeat(count, 1), of.values))[order]
    positions = F.pad(of.positions, (0, 0, count * len(by), 0))[order]
    return replace(of, values=values, positions=positions, lengths=of.lengths + len(by)), order.argsort()[count * len(by) :]


def set_means(x: Tensor, of: Packed) -> Tensor:
    """x (M,) -> its mean over each set, (sets,)."""
    return torch.segment_reduce(x, "mean", lengths=of.lengths)
