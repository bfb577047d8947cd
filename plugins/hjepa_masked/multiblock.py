"""Several blocks of an image are told from one large block around them (I-JEPA, arXiv:2301.08243, section 3)."""

from __future__ import annotations

from torch import Tensor

from hjepa.contracts import Count, Packed, Spec
from hjepa.randomness import Key
from hjepa_masked.boxes import Law, Range, Room, boxes, ordered, settled, space
from hjepa_masked.packs import packs


class Multiblock:
    """One family, `block`: each target is a rectangle, the context is another one without what any of the targets covers.

    The targets of a sample have one size and different places, and may overlap; all of it is drawn by the sample's key alone. On a
    grid with time they span all of it.

    count: how many targets. scale: share of the grid that a target covers, smallest and largest. aspect: its height over its
    width, smallest and largest. context_scale: share that the context's block covers before the targets are taken out; its
    aspect is 1. min_keep: tokens that the context has at least; where draws leave less it is widened, and then targets coincide.
    """

    families = ("block",)

    def __init__(
        self,
        spec: Spec,
        *,
        count: Count = 4,
        scale: Range = (0.15, 0.2),
        aspect: Range = (0.75, 1.5),
        context_scale: Range = (0.85, 1.0),
        min_keep: Count = 10,
    ) -> None:
        self.flat, self.grid, self.least = spec.grid, space(spec.grid), min_keep
        target = Law(count, ordered("scale", scale, 1), ordered("aspect", aspect))
        self.laws = (Law(1, ordered("context_scale", context_scale, 1)), target)
        time, rows, columns = self.grid
        (tall, wide), tokens = target.largest(self.grid), rows * columns * time
        if tall * wide * time + min_keep > tokens:
            covered = f"a target of up to {tall} x {wide} places and min_keep = {min_keep}"
            most = f"{tall * wide * time} + {min_keep} = {tall * wide * time + min_keep}"
            raise ValueError(
                f"{covered} are {most} tokens, and there are {tokens}; lower scale or min_keep, or take smaller patches"
            )
        if int(rows * columns * context_scale[0]) * time < min_keep:
            least = f"{context_scale[0]:g} of {tokens} tokens are {int(rows * columns * context_scale[0]) * time}"
            raise ValueError(f"context_scale: {least}, and min_keep is {min_keep}; raise one or lower the other")

    def sample(self, key: Key, valid: Tensor | None = None) -> dict[str, list[Packed]]:
        """The context and `count` targets of each row; one key a row (R,), valid (R, N)."""
        room = Room.of(self.grid, valid, key.word.device)

        sets = settled(lambda key: boxes(key, self.laws, room), key, room.all(len(key.word)), self.least)
        return {"block": packs(sets, self.flat, "block")}
