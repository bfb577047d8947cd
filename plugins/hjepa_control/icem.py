"""CEM that wastes fewer samples: smooth plans, elites that stay, fewer plans as it goes on (Pinneri et al. 2020, arXiv:2008.06389)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from hjepa.contracts import ActionSpace, Count, Fraction, NonNegative, Plan, PlanningProblem, Positive
from hjepa.nn.population import Ranked, around, begun, judged, reach, within
from hjepa.randomness import Key, normal


class Icem:
    """samples: plans of the first iteration; shrinking: by which factor there are fewer in each one after, but twice the elites at
    least; elites, iterations, spread, floor, momentum: as of `cem`; colour: exponent of the spectrum of the noise over the steps of a
    plan, 0 for steps that know nothing of one another, 2 for paths of Brown; kept: the share of elites that are candidates again;
    anchored: as of `cem`.
    """

    def __init__(
        self,
        *,
        samples: Count = 64,
        shrinking: Positive = 1.25,
        elites: Count = 8,
        iterations: Count = 5,
        spread: Positive = 0.5,
        floor: NonNegative = 0.05,
        momentum: Fraction = 0.1,
        colour: NonNegative = 2.0,
        kept: Fraction = 0.3,
        anchored: Fraction = 1.0,
    ) -> None:
        if elites > samples or shrinking < 1:
            raise ValueError(
                f"elites is {elites} of {samples} samples, shrinking {shrinking:g}: write fewer elites, and 1 or more"
            )
        self.samples, self.shrinking, self.elites, self.iterations = samples, shrinking, elites, iterations
        self.spread, self.floor, self.momentum = spread, floor, momentum
        self.colour, self.kept, self.anchored = colour, round(kept * elites), anchored

    @torch.no_grad()
    def plan(self, problem: PlanningProblem, warm: Plan | None, key: Key) -> Plan:
        """The best plan that was seen."""
        mean, half = begun(problem, warm), reach(problem.space)
        deviation = (self.spread * half).expand_as(mean)
        elite: Ranked | None = None
        for turn in range(self.iterations):
            count = max(2 * self.elites, round(self.samples / self.shrinking**turn))
            noise = self._noise(problem.space, key.fold(turn), (count, *mean.shape[1:]))
            drawn = torch.cat((mean[:, None], mean[:, None] + deviation[:, None] * noise), dim=1)[:, :count]
            candidates = around(problem.space, drawn, self.anchored, elite is None, key.fold(turn))
            again = None if elite is None else elite.first(max(1, self.kept))
            elite = judged(problem, within(problem.space, candidates)).beside(again, self.elites)
            fitted = torch.maximum(elite.actions.std(1, correction=0), self.floor * half)
            mean = torch.lerp(elite.actions.mean(1), mean, self.momentum)
            deviation = torch.lerp(fitted, deviation, self.momentum)
        assert elite is not None
        return elite.plan()

    def _noise(self, space: ActionSpace, key: Key, shape: tuple[int, int, int]) -> Tensor:
        """(B, *shape), shape (S, K, A): smooth over the steps of the world, also where an action is several of them."""
        count, steps, width = shape
        white = normal(key, "candidates", (count, steps * space.joined, width // space.joined))
        return rearrange(coloured(white, self.colour), "b s (k j) a -> b s k (j a)", j=space.joined)


def coloured(noise: Tensor, exponent: float) -> Tensor:
    """White noise (..., K, A) -> noise over K steps whose power falls with frequency to that exponent, of variance 1."""
    steps = noise.shape[-2]
    if not exponent or steps == 1:
        return noise
    frequency = torch.fft.rfftfreq(steps, device=noise.device).clamp(min=1 / steps)
    scale = frequency ** (-exponent / 2)
    twice = torch.full_like(scale, 2.0)  # all but the first, and the last of an even number, stand for two frequencies
    twice[0] = 1.0
    if steps % 2 == 0:
        twice[-1] = 1.0
    scale = scale / ((twice * scale.square()).sum() / steps).sqrt()
    return torch.fft.irfft(torch.fft.rfft(noise, dim=-2) * scale[:, None], n=steps, dim=-2)
