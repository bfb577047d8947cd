"""A batch that does not fit at once, in parts: their gradients add up to that of the whole where a loss is a mean over samples.

Statistics over the batch (variance, covariance, negatives) are those of each part: with `accumulate: 4` and `batch: 256` a
prevention sees 64 samples at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hjepa.contracts import Batch, Outcome
from hjepa.errors import Mistake


def parts(batches: Mapping[str, Batch], count: int) -> list[dict[str, Batch]]:
    """Each batch in `count` parts of the same number of samples. Mistake where one cannot be shared out."""
    for label, batch in batches.items():
        if len(batch["ids"]) % count:
            raise Mistake(f"data.{label}.batch: {len(batch['ids'])} samples cannot be shared out to train.accumulate = {count}")
    shared = {label: {name: tensor.chunk(count) for name, tensor in batch.items()} for label, batch in batches.items()}
    return [
        {label: {name: pieces[number] for name, pieces in batch.items()} for label, batch in shared.items()}
        for number in range(count)
    ]


def together(found: Sequence[Mapping[str, Outcome]]) -> dict[str, Outcome]:
    """What the levels say of the whole batch: energies side by side, terms and logs in the mean."""
    if len(found) == 1:
        return dict(found[0])
    return {level: _joined([outcomes[level] for outcomes in found]) for level in found[0]}


def _joined(outcomes: Sequence[Outcome]) -> Outcome:
    first = outcomes[0]
    return Outcome(
        energy=torch.cat([one.energy.detach() for one in outcomes]),
        trivial=torch.cat([one.trivial.detach() for one in outcomes]),
        terms={name: torch.stack([one.terms[name].detach() for one in outcomes]).mean() for name in first.terms},
        embeddings={name: torch.cat([one.embeddings[name].detach() for one in outcomes]) for name in first.embeddings},
        logs={name: torch.stack([one.logs[name].detach() for one in outcomes]).mean() for name in first.logs},
    )
