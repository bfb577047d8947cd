"""A level that says how frames flow into one another, and learns its features by it: the motion half of MC-JEPA.

Bardes, Ponce, LeCun 2023 (arXiv:2307.12698). Coarse to fine, an estimator finds where each pixel of a frame is seen in the next,
and the features of the next frame, taken from there, shall be those of this one: a prediction in feature space at every scale. On
constant features every flow predicts perfectly: what keeps them apart is `prevention`, at every scale, or what the flow must explain
of the frames themselves. Nothing here needs to know the true flow.

    B batch    T steps    P = B (T-1) pairs of neighbouring frames    R = 2 P: each pair both ways, forward first    S scales
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa.contracts import (
    Build,
    Count,
    Encoder,
    Energy,
    Fraction,
    Here,
    NonNegative,
    Outcome,
    Pair,
    Prevention,
    Spec,
    States,
    Whole,
    by_name,
)
from hjepa.nn.preventions import Preventions
from hjepa.nn.states import states_of
from hjepa.nn.warping import inside, occluded, reached, upsampled, warped
from hjepa.schedules import Schedule
from hjepa_motion.estimator import Estimator
from hjepa_motion.losses import PHOTOMETRIC, masked_mean, smoothness

Occlusion = Literal["range", "check", "outside"]

HIDDEN: dict[Occlusion, Callable[[Tensor, Tensor], Tensor]] = {
    "range": lambda forth, back: (reached(back) < 0.5) | ~inside(forth.detach()),
    "check": occluded,
    "outside": lambda forth, back: ~inside(forth.detach()),
}
"""Flows both ways (R, 2, H, W) -> which pixels are not seen in the other frame (R, H, W), without gradient."""

PLACES = 64
"""Places of a map, evenly spread, that are watched for collapse."""


class Motion(nn.Module):
    """Optical flow between the frames that it reads, from the maps of its encoder, without supervision.

    Its states are the maps and tokens of the encoder. The flow of a scale is the up-sampled flow of the coarser one and what the
    estimator adds; that of the finest is enlarged to the frames. All losses see both directions, and all count for every scale.

    encoder, energy, prevention: components; the encoder must give maps. A prevention that gives targets (`ema`, `stop_gradient`)
        gives those of the regression; the terms of the others are taken of every scale, with positions and batch as samples.
    radius: how far, in pixels of its map, a scale looks for matches; width: channels of all maps as the estimator sees them; hidden:
        channels of its layers; dropout: of whole channels of these.
    occlusion: which pixels are left out of what frames and features must explain, never with gradient: those that nothing comes
        from by the flow back (`range`), those from which forth and back does not lead home (`check`), or only those that leave the
        picture (`outside`). occlusion_after: steps in which only those count: flows that are still random lead nowhere.
    weight_of_regression: of the energy of features after warping; weight_of_l1, weight_of_l2, weight_of_ssim, weight_of_census: of
        the difference of frames after warping, by that measure; weight_of_slowness: of the flow's size, so that what
        frames say nothing about is at rest (Weiss, Simoncelli, Adelson 2002); weight_of_smoothness, weight_of_curvature: of its first
        and second differences, in pixels of its map, where frames have no edges; weight_of_cycle: of the energy of features that are
        warped there and back. A weight of 0 leaves a term out.
    edges: how much a difference between neighbouring pixels of 1 lets the flow differ: smoothness is weighed with exp(-edges |dI|).
    coarser: how much the differences of frames and the smoothness of a scale count, as a share of those of the next finer one;
        finer: how much the preventions of a scale count, as a share of those of the next coarser one.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        encoder: Build[Encoder],
        energy: Build[Energy] = by_name("l2"),
        prevention: Sequence[Build[Prevention]] = (),
        radius: Count = 4,
        width: Count = 24,
        hidden: tuple[Count, ...] = (64, 48, 32),
        dropout: Fraction = 0.0,
        occlusion: Occlusion = "range",
        occlusion_after: Whole = 0,
        weight_of_regression: Schedule = Schedule.of(1.0),
        weight_of_l1: Schedule = Schedule.of(0.0),
        weight_of_l2: Schedule = Schedule.of(0.0),
        weight_of_ssim: Schedule = Schedule.of(0.0),
        weight_of_census: Schedule = Schedule.of(0.0),
        weight_of_slowness: Schedule = Schedule.of(0.0),
        weight_of_smoothness: Schedule = Schedule.of(0.0),
        weight_of_curvature: Schedule = Schedule.of(0.0),
        weight_of_cycle: Schedule = Schedule.of(0.0),
        edges: NonNegative = 10.0,
        coarser: Fraction = 0.5,
        finer: Fraction = 0.5,
    ) -> None:
        super().__init__()
        if not spec.maps:
            raise ValueError("motion reads frames, and what it is given has no maps")
        self.encoder = encoder(spec)
        self.spec = spec.encoded(self.encoder.spec)
        if not self.spec.maps:
            raise ValueError("motion compares maps, and its encoder gives none; use one that does, as pyramid")
        channels = [count for count, _, _ in self.spec.maps]
        self.estimator = Estimator(channels, width, radius, hidden, dropout)
        self.energy = energy(self.spec)
        self.strides = [f"stride{spec.maps[0][1] // height}" for _, height, _ in self.spec.maps]
        self.preventions = nn.ModuleList(_of_scales(self.spec, prevention))
        self.targets.bind(self.encoder)
        self.hidden, self.occlusion_after, self.edges = HIDDEN[occlusion], occlusion_after, edges
        self.coarser, self.finer, self.needs = coarser, finer, 2
        self.weights = {
            "regression": weight_of_regression,
            "l1": weight_of_l1,
            "l2": weight_of_l2,
            "ssim": weight_of_ssim,
            "census": weight_of_census,
            "slowness": weight_of_slowness,
            "smoothness": weight_of_smoothness,
            "curvature": weight_of_curvature,
            "cycle": weight_of_cycle,
        }

    @property
    def targets(self) -> Preventions:
        """The preventions of the finest scale, among which is the one that gives targets."""
        finest = self.preventions[0]
        assert isinstance(finest, Preventions)
        return finest

    def encode(self, below: States) -> States:
        """Frames (B, T, ...) -> the maps of every step, and its token."""
        return states_of(self.encoder, below)

    # --- what it says ---

    def predictions(self, below: States) -> dict[str, Tensor]:
        """`flow`, which pixels are `occluded`, and the flow of every scale: `flow_0` is the coarsest."""
        both = [_both_ways(one) for one in self.encode(below).maps]
        scales = self.estimator(both, [_swapped(one) for one in both])
        flow = upsampled(scales[-1], _size(below.maps[0]))
        said = {"flow": flow, "occluded": self.hidden(flow, _swapped(flow))}
        said |= {f"flow_{number}": scale for number, scale in enumerate(scales)}
        return {name: _of_samples(one[: len(one) // 2], below) for name, one in said.items()}

    # --- what it learns from ---

    def forward(self, here: Here) -> Outcome:
        """One step of training: the energy (B, T-1) of features after warping, the mean over scales, directions and all pixels.

        The baseline `trivial` is no motion at all; `shuffled` has the next frames of another sample, and the flow that fits them.
        """
        states, targets = here.states, self.targets.targets(here)
        maps, aims, flows, moved = self._matched(states, targets)
        energies = self._energies(moved, aims)
        shape = len(states.time), states.steps - 1
        terms = self._terms(here, maps, aims, flows, energies)
        terms |= self._kept_apart(here, states, moved, aims)
        with torch.no_grad():
            still = self._energies([_swapped(one) for one in maps], aims)
        outcome = Outcome(_mean(energies, shape), _mean(still, shape), terms, self._watched(states))
        return outcome if self.training or shape[0] == 1 else replace(outcome, shuffled=self._shuffled(states, targets))

    def _matched(self, states: States, targets: States, roll: int = 0) -> tuple[list[Tensor], ...]:
        """Of every scale, finest first: maps (R, C, H, W), what they shall be, flows (R, 2, H, W), and the other end's maps, warped."""
        maps, aims = ([_both_ways(one, roll) for one in of.maps] for of in (states, targets))
        flows = self.estimator(maps, [_swapped(one) for one in maps])[::-1]
        return maps, aims, flows, [warped(_swapped(one), flow) for one, flow in zip(maps, flows, strict=True)]

    def _energies(self, moved: Sequence[Tensor], aims: Sequence[Tensor]) -> list[Tensor]:
        """Of every scale: maps (R, C, H, W) each -> (R, H, W)."""
        return [self.energy(one.movedim(1, -1), aim.movedim(1, -1)) for one, aim in zip(moved, aims, strict=True)]

    def _terms(
        self, here: Here, maps: list[Tensor], aims: list[Tensor], flows: list[Tensor], energies: list[Tensor]
    ) -> dict[str, Tensor]:
        """What the flows (R, 2, H, W) of every scale, finest first, must explain, by name and weighted; the mean over scales."""
        weight = {name: value for name, schedule in self.weights.items() if (value := schedule(here.step))}
        hidden = self.hidden if here.step >= self.occlusion_after else HIDDEN["outside"]
        frames = _both_ways(here.below.maps[0])
        found: dict[str, list[Tensor]] = {name: [] for name in weight}
        for scale, (one, aim, flow, energy) in enumerate(zip(maps, aims, flows, energies, strict=True)):
            seen = ~hidden(flow, _swapped(flow))
            if "regression" in weight:
                found["regression"].append(masked_mean(energy, seen).mean())
            if "cycle" in weight:
                found["cycle"].append(self._cycle(one, aim, flow, seen))
            for name, term in self._of_frames(frames, flow, hidden, weight).items():
                found[name].append(self.coarser**scale * term)
        return {name: weight[name] * torch.stack(terms).mean() for name, terms in found.items()}

    def _cycle(self, one: Tensor, aim: Tensor, flow: Tensor, seen: Tensor) -> Tensor:
        """The energy of features that go along the flow and come back."""
        home = warped(warped(one, _swapped(flow)), flow)
        return masked_mean(self.energy(home.movedim(1, -1), aim.movedim(1, -1)), seen).mean()

    def _of_frames(
        self, frames: Tensor, flow: Tensor, hidden: Callable[[Tensor, Tensor], Tensor], weight: dict[str, float]
    ) -> dict[str, Tensor]:
        """How frames (R, C, H, W) differ where the flow of one scale, enlarged, says that they agree; and how smooth it is."""
        found: dict[str, Tensor] = {}
        if wanted := [name for name in PHOTOMETRIC if name in weight]:
            full = upsampled(flow, _size(frames))
            seen, moved = ~hidden(full, _swapped(full)), warped(_swapped(frames), full)
            found = {name: masked_mean(PHOTOMETRIC[name](moved, frames), seen).mean() for name in wanted}
        small = F.interpolate(frames, _size(flow), mode="area")
        for order, name in enumerate(("slowness", "smoothness", "curvature")):
            if name in weight:
                found[name] = smoothness(flow, small, order, self.edges).mean()
        return found

    def _kept_apart(self, here: Here, states: States, moved: Sequence[Tensor], aims: Sequence[Tensor]) -> dict[str, Tensor]:
        """The preventions' terms of every scale, named by its stride: less, the finer it is."""
        found: dict[str, Tensor] = {}
        for scale, preventions in enumerate(self.preventions):
            assert isinstance(preventions, Preventions)
            pair = Pair(_rows(moved[scale]), _rows(aims[scale]), _tokens(states.maps[scale]))
            share = self.finer ** (len(self.strides) - 1 - scale)
            found |= {f"{name}.{self.strides[scale]}": share * term for name, term in preventions.terms(pair, here).items()}
        return found

    def _watched(self, states: States) -> dict[str, Tensor]:
        """Embeddings of every scale (rows, C), of some of its places."""
        return {
            name: _tokens(one)[:, :, :: -(-one.shape[3] * one.shape[4] // PLACES)].detach().flatten(0, 2)
            for name, one in zip(self.strides, states.maps, strict=True)
        }

    @torch.no_grad()
    def _shuffled(self, states: States, targets: States) -> Tensor:
        """(B, T-1): from frames to the next frames of the sample before, and from these back."""
        _, aims, _, moved = self._matched(states, targets, roll=1)
        return _mean(self._energies(moved, aims), (len(states.time), states.steps - 1))


def _of_scales(spec: Spec, factories: Sequence[Build[Prevention]]) -> list[Preventions]:
    """One set of preventions a scale, finest first; the one that gives targets is in the first alone, since it gives all maps."""
    finest, *others = (replace(spec, width=channels, grid=(height, width), maps=()) for channels, height, width in spec.maps)
    first = Preventions(finest, factories)
    rest = [factory for name, factory in zip(first.names, factories, strict=True) if name != first.giving]
    return [first, *(Preventions(other, rest) for other in others)]


def _now(steps: Tensor) -> Tensor:
    """(B, T, ...) -> (P, ...): all but the last step."""
    return steps[:, :-1].flatten(0, 1)


def _later(steps: Tensor, roll: int = 0) -> Tensor:
    """(B, T, ...) -> (P, ...): the step after each of these, of another sample where they are rolled."""
    return steps[:, 1:].roll(roll, 0).flatten(0, 1)


def _both_ways(steps: Tensor, roll: int = 0) -> Tensor:
    """(B, T, ...) -> (R, ...): where each pair begins, forward first."""
    return torch.cat((_now(steps), _later(steps, roll)))


def _swapped(rows: Tensor) -> Tensor:
    """(R, ...): of each row, what belongs to the other end of its pair."""
    return rows.roll(len(rows) // 2, 0)


def _of_samples(rows: Tensor, below: States) -> Tensor:
    """(P, ...) -> (B, T-1, ...)."""
    return rows.reshape(len(below.time), -1, *rows.shape[1:])


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]


def _rows(maps: Tensor) -> Tensor:
    """(R, C, H, W) -> (R, H W, C)."""
    return maps.flatten(2).mT


def _tokens(maps: Tensor) -> Tensor:
    """(B, T, C, H, W) -> (B, T, H W, C)."""
    return maps.flatten(3).mT


def _mean(energies: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
    """(R, H, W) of every scale -> (B, T-1): the mean over places, directions and scales."""
    return torch.stack([one.mean((1, 2)) for one in energies]).mean(0).view(2, *shape).mean(0)
