"""What a world shows to someone who does anything: walks where nobody knows better ones.

B samples    T frames    A action width
"""

from __future__ import annotations

import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Batch
from hjepa.randomness import Key, uniform
from hjepa_control.gymnasium_world import GymnasiumWorld

CHANGE = 0.25
"""How often something else is done than a step before: who changes his mind at every step gets nowhere."""


class Roaming:
    """Walks of T frames, each in a task of its own, a pure function of the seed and its id.

    A batch holds what the world shows, (B,T,...) each; `actions` (B,T-1,A), evenly from all that can be done; and `lengths` (B,), how
    many frames a walk has: from where its episode ended, nothing happens any more.
    """

    def __init__(self, seed: int, world: GymnasiumWorld, frames: int) -> None:
        self.seed, self.world, self.frames = seed, world, frames

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        key = Key.of(self.seed, "roaming").fold(ids.cpu())
        actions = anything(key, self.world.actions, self.frames - 1)
        seen, lengths = [self.world.reset(self.world.tasks(key))], torch.ones_like(ids.cpu())
        for action in actions.unbind(dim=1):
            lengths += ~torch.tensor(self.world.over)
            seen.append(self.world.step(action)[0])
        walked = {name: torch.cat([one[name] for one in seen], dim=1) for name in seen[0]}
        return {name: value.to(device) for name, value in (walked | {"actions": actions, "lengths": lengths}).items()}


def anything(key: Key, space: ActionSpace, steps: int) -> Tensor:
    """(B, steps, A), evenly from all that can be done; something else once in a while."""
    low, high = space.low.to(key.word.device), space.high.to(key.word.device)
    drawn = low + (high - low) * uniform(key, "action", (steps, len(low)))
    changed = torch.where(uniform(key, "change", (steps,)) < CHANGE, torch.arange(steps, device=drawn.device), 0)
    latest = changed.cummax(dim=1).values
    return drawn.gather(1, latest[..., None].expand_as(drawn))
