"""Is a level alive? Diagnostics of its embeddings on a fixed held-out batch, and a verdict in words.

    (R, D) embeddings -> measure -> Reading (with the energies of the same batch) -> verdict

The order of the verdicts matters. A level that has shrunk to a dot keeps rounding noise of full rank, so its spectrum looks
richer than that of a living one: how far the level spreads is asked first, in how many directions second, and only then, once
training has had time, whether the level predicts better than its trivial baseline, and whether its energy knows true targets from
wrong ones. A low energy alone is never evidence of learning.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from hjepa import randomness
from hjepa.randomness import Key

SPREAD_LEFT = 0.01
"""Complete collapse: less than this is left of the spread at the start, or of the scale (uncentred RMS)."""

VARIANCE_LEFT = 0.01
"""Complete collapse as well: `std^2 / (initial std * rms)` below this, both shares falling together. An adaptive optimizer moves
every weight by about the learning rate however small the gradient, so a dead level keeps jittering and its spread stays above 1 %
while the learning rate is high. One share alone says little above 1 %: a level that only changes its scale keeps the other."""

FAINT = 0.2
MEANT = 0.03
"""Complete collapse as well: less than `FAINT` is left of the spread at the start, and what is left, times how well its energy tells
true targets from wrong ones, is less than `MEANT`: it is mostly the jitter that an optimizer leaves of a level that nothing keeps
apart. Of the scale it may be little: pooled maps get a large mean while they learn, and some begin with it."""

FADING = 0.04
"""Complete collapse as well: less than this of `variance_left`, and no term keeps what is left apart. It takes hundreds of steps to
shrink by another half, and nothing will turn it round."""

ONE_DIRECTION = 1.5
"""Dimensional collapse: an effective rank below this. How many directions a living level needs follows from what moves in its
world (two for an angle, whatever the width), so the threshold is no share of the width: about one direction is left, or not."""

TOP_SHARE = 0.99
"""Dimensional collapse as well: one direction holds this share of the variance. Noise of 1 % of its length in the other
directions gives a dead line in 64 dimensions an effective rank near 10, which is also that of living levels."""

NO_GAP = 0.03
"""Energy collapse: wrong targets cost less than this more than the true ones, as a share of what they or the baseline cost."""

LOW_ENERGY = 0.5
"""Energy collapse also takes a gain above this: before a predictor is good for anything, true and wrong targets cost the same."""

NO_GAIN = 1e-3
"""Shortcut: a gain over the trivial baseline that is not larger than this. Both energies are of the same batch, so that no
sampling noise lies between them."""

ENERGIES = ("energy", "trivial", "shuffled")
"""What a reading holds beside the diagnostics of embeddings."""

COLLAPSES = ("complete collapse", "dimensional collapse", "energy collapse", "diverged")
"""How the verdicts begin that no training recovers from by itself."""

RELATIVE_FLOOR = 1e-5
"""Singular values below this share of the largest are noise: float32 cannot tell them from rounding."""


@dataclass(frozen=True)
class Reading:
    """What one level shows on the held-out batch: `Reading(**measure(embedding), energy=..., trivial=...)`."""

    std: float
    rms: float
    rank: float
    rank_share: float
    top_share: float
    correlation: float
    energy: float
    """Mean energy of the predictions."""
    trivial: float
    """Mean energy of the level's own baseline on the same batch."""
    shuffled: float | None = None
    """Mean energy where each sample has the targets of another; None where the level does not say."""

    @property
    def gain(self) -> float:
        """1 - energy / trivial: 1 is perfect, 0 is no better than the baseline.

        Where the baseline is perfect: 0 if the prediction is too, else -1.
        """
        if self.trivial == 0:
            return 0.0 if self.energy == 0 else -1.0
        return 1 - self.energy / self.trivial

    @property
    def gap(self) -> float | None:
        """(shuffled - energy) over the larger of shuffled and trivial: 0 where any target fits as well as the true one.

        The baseline keeps two energies that are both nothing from looking far apart: a latent variable that carries everything
        fits the true target and any other.
        """
        if self.shuffled is None:
            return None
        scale = max(self.shuffled, self.trivial)
        return (self.shuffled - self.energy) / scale if scale > 0 else 0.0

    def variance_left(self, initial_std: float) -> float:
        """How much spread is left of the start, times how much of the scale."""
        return _share(self.std, initial_std) * _share(self.std, self.rms)

    def std_ratio(self, initial_std: float) -> float:
        """How much spread is left: of the start or of the scale, whichever is less."""
        return min(_share(self.std, initial_std), _share(self.std, self.rms))


def measure(embedding: Tensor) -> dict[str, float]:
    """Diagnostics of R embeddings (R, D), in float64, by one transfer to the host. Every key is a field of `Reading`.

    - `std`: centred root mean square; `rms`: uncentred.
    - `rank`: effective rank, the exponential of the entropy of the centred singular values (Roy & Vetterli 2007), without
      those below the noise floor. A constant embedding has rank 1; a single row shows no direction and has rank 0.
    - `rank_share`: `rank` over that of a Gaussian sample of the same R and D.
    - `top_share`: share of the variance along the first principal direction.
    - `correlation`: mean absolute correlation of two different dimensions; those that are constant count as uncorrelated.

    All are nan where an embedding is not finite.
    """
    rows, floor = _on_host(embedding)
    if not rows.isfinite().all():
        return dict.fromkeys((f.name for f in fields(Reading) if f.name not in ENERGIES), math.nan)
    centred = rows - rows.mean(0)
    values = _singular_values(centred, floor * rows.norm())
    rank = _effective_rank(values) if len(rows) > 1 else 0.0
    variance = values.square()
    return {
        "std": float(centred.square().mean().sqrt()),
        "rms": float(rows.square().mean().sqrt()),
        "rank": rank,
        "rank_share": rank / gaussian_rank(*rows.shape),
        "top_share": float(variance[0] / variance.sum()) if variance[0] > 0 else 1.0,
        "correlation": _correlation(centred),
    }


def spectrum(embedding: Tensor) -> list[float]:
    """The centred singular values (min(R, D),) over the largest, in falling order; zeros for a constant embedding."""
    rows, floor = _on_host(embedding)
    if not rows.isfinite().all():
        return [math.nan] * min(rows.shape)
    values = _singular_values(rows - rows.mean(0), floor * rows.norm())
    largest = values[0] if values[0] > 0 else 1.0
    return [float(value) for value in values / largest]


def fading(now: Reading, initial_std: float, settled: bool) -> bool:
    """Whether so little is left that it matters whether anything keeps it apart."""
    return settled and _faint(now, initial_std) and now.variance_left(initial_std) < FADING


def verdict(now: Reading, initial_std: float, settled: bool, held: bool = True) -> str:
    """`healthy`, or words that begin with what is wrong.

    `initial_std` is the level's `std` before training. `settled`: training has had time (its first tenth is over), so that
    energies that tell nothing are a finding. `held`: whether something keeps the level apart; asked for where it is `fading`.
    """
    for name, value in asdict(now).items():
        if value is not None and not math.isfinite(value):
            return f"diverged ({name} is {value})"
    if now.rank == 0:
        return "undecided (a single embedding shows no spread)"
    if _gone(now, initial_std, settled) or (fading(now, initial_std, settled) and not held):
        start, scale = _share(now.std, initial_std), _share(now.std, now.rms)
        return f"complete collapse (std at {_percent(start)} of its start, {_percent(scale)} of its scale)"
    full = now.rank / now.rank_share
    if full > ONE_DIRECTION and (now.rank < ONE_DIRECTION or now.top_share > TOP_SHARE):
        share = _percent(now.top_share)
        return f"dimensional collapse (rank {now.rank:.1f} of {full:.0f}, {share} of the variance in one direction)"
    if settled and now.gain <= NO_GAIN:
        return f"shortcut (predicts no better than its trivial baseline: energy {now.energy:.3g}, baseline {now.trivial:.3g})"
    if settled and now.gap is not None and now.gap < NO_GAP and now.gain > LOW_ENERGY:
        return f"energy collapse (wrong targets cost only {_percent(max(now.gap, 0.0))} more than the true ones)"
    return "healthy"


def _gone(now: Reading, initial_std: float, settled: bool) -> bool:
    left = now.std_ratio(initial_std)
    if left < SPREAD_LEFT or now.variance_left(initial_std) < VARIANCE_LEFT:
        return True
    return settled and _faint(now, initial_std) and now.gap is not None and left * now.gap < MEANT


def _faint(now: Reading, initial_std: float) -> bool:
    return _share(now.std, initial_std) < FAINT


def collapsed(words: str) -> bool:
    """Whether a verdict says that there is nothing left to learn with."""
    return words.startswith(COLLAPSES)


@lru_cache(maxsize=256)
def gaussian_rank(rows: int, width: int) -> float:
    """The effective rank of a fixed Gaussian sample (rows, width): what `rank` can at most be expected to be."""
    sample = randomness.normal(Key.of("collapse", rows, width), "gaussian", (rows, width)).double()
    return _effective_rank(_singular_values(sample - sample.mean(0), torch.zeros((), dtype=torch.float64)))


def _on_host(embedding: Tensor) -> tuple[Tensor, float]:
    """The embeddings in float64, and the share of their norm that rounding in their own type can amount to."""
    return embedding.detach().cpu().double(), torch.finfo(embedding.dtype).eps / 2


def _singular_values(centred: Tensor, floor: Tensor) -> Tensor:
    """(min(R, D),) in falling order; what lies below the floor, or too far below the largest, is 0.

    From the smaller Gram matrix: in float64 it is exact far below the floor, and much cheaper than a decomposition.
    """
    rows, width = centred.shape
    gram = centred @ centred.T if rows < width else centred.T @ centred
    values: Tensor = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)
    return values * (values > torch.maximum(floor, RELATIVE_FLOOR * values[0]))


def _effective_rank(values: Tensor) -> float:
    if values[0] == 0:
        return 1.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def _correlation(centred: Tensor) -> float:
    width = centred.shape[1]
    unit = torch.nn.functional.normalize(centred, dim=0, eps=1e-300)
    matrix = (unit.T @ unit).abs()
    return float((matrix.sum() - matrix.diagonal().sum()) / max(1, width * (width - 1)))


def _share(part: float, whole: float) -> float:
    """Part of a whole; all of it where there is no whole to compare with and something is left, nothing where nothing is."""
    return part / whole if whole > 0 else float(part > 0)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.3g} %"
