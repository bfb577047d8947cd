"""From features to states, and from the steps of one clock to the windows of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from hjepa.contracts import Spec, States


def states_of(encoder: Any, below: States) -> States:
    """The states that an encoder makes of `below`, step by step, with the times and actions of `below`."""
    features = encoder(below)
    return States(features.tokens, below.time, encoder.spec.grid, features.valid, features.maps, below.actions)


def joined(parts: Sequence[States]) -> States:
    """Several readings of the same steps as one: nothing is mixed here, the encoder decides."""
    first = parts[0]
    if len(parts) == 1:
        return first
    nothing = first.tokens.new_empty((*first.time.shape, 0, 0))
    return States(nothing, first.time, actions=first.actions, parts=tuple(parts))


def followed(earlier: States, later: States) -> States:
    """Tokens of `earlier`, then those of `later`, of the same samples; and doubt, where both have some."""
    tokens, time = torch.cat((earlier.tokens, later.tokens), dim=1), torch.cat((earlier.time, later.time), dim=1)
    doubts = [states.doubt for states in (earlier, later) if states.doubt is not None]
    return States(tokens, time, earlier.grid, doubt=torch.cat(doubts, dim=1) if len(doubts) == 2 else None)


def window_ticks(ticks: tuple[int, ...], stride: int, window: int) -> tuple[int, ...]:
    """The ticks of windows: each has seen the last of its steps. A last window that is not full is left out."""
    return tuple(ticks[end] for end in range(window - 1, len(ticks), stride))


def window_spec(spec: Spec, stride: int, window: int) -> Spec:
    """What a level knows of what it reads, in windows at its own clock."""
    side_by_side = stride if spec.actions else 1
    folded = replace(
        spec, ticks=window_ticks(spec.ticks, stride, window), actions=spec.actions * side_by_side, joined=side_by_side
    )
    folded = replace(folded, parts=tuple(window_spec(part, stride, window) for part in spec.parts))
    if window == 1:
        return folded
    maps = tuple((window * channels, height, width) for channels, height, width in spec.maps)
    return replace(folded, grid=(window, *spec.grid), maps=maps, window=window * spec.window)


def windows(states: States, starts: list[int], stride: int, window: int) -> States:
    """Windows of `window` steps from each of `starts` (positions in `states`), folded into one step each.

    Tokens (B,T,N,D) become (B,T',W*N,D), maps (B,T,C,H,W) become (B,T',W*C,H,W), and the actions between the ends of two
    windows, `stride` apart, become one (B,T'-1,stride*A).
    """
    if window == 1 and stride == 1 and starts == list(range(states.steps)):
        return states
    index = _each(tuple(starts), window, states.time.device)

    def chosen(x: Tensor, pattern: str) -> Tensor:
        return rearrange(x[:, index], pattern)

    return States(
        tokens=chosen(states.tokens, "b t w n d -> b t (w n) d"),
        time=states.time[:, index[:, -1]],
        grid=states.grid if window == 1 else (window, *states.grid),
        valid=None if states.valid is None else chosen(states.valid, "b t w n -> b t (w n)"),
        maps=tuple(chosen(m, "b t w c h x -> b t (w c) h x") for m in states.maps),
        actions=_chunks(states.actions, [start + window - 1 for start in starts], stride),
        parts=tuple(windows(part, starts, stride, window) for part in states.parts),
    )


def _chunks(actions: Tensor | None, ends: list[int], stride: int) -> Tensor | None:
    """What was done between the ends of two windows."""
    if actions is None:
        return None
    return rearrange(actions[:, _each(tuple(ends[:-1]), stride, actions.device)], "b t s a -> b t (s a)")


@lru_cache(maxsize=1024)
def _each(starts: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """(starts, count): so many positions from each start. Kept, for a GPU waits for each that it is sent anew."""
    return torch.tensor(starts, dtype=torch.int64, device=device)[:, None] + torch.arange(count, device=device)
