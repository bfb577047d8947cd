"""The streams of a batch that a transform changes."""

from __future__ import annotations

from collections.abc import Sequence

from hjepa.contracts import Batch
from hjepa.errors import Mistake, listed, nearest


def pixels(batch: Batch, names: Sequence[str]) -> Batch:
    """Those with these names, (B,T,C,H,W) each. Mistake where one is not there, or is something else."""
    for name in names:
        if name not in batch:
            raise Mistake(f"the batch has no {name!r} to transform{nearest(name, batch)} (it has: {listed(sorted(batch))})")
        if batch[name].dim() != 5:
            raise Mistake(f"{name!r} is {tuple(batch[name].shape)}; a transform of images needs (B, T, C, H, W)")
    return {name: batch[name] for name in names}
