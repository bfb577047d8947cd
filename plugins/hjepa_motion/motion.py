"""A level that says how frames flow into one another, and learns its features by it: the motion half of MC-JEPA.

Bardes, Ponce, LeCun 2023 (arXiv:2307.12698). Coarse to fine, an estimator finds where each pixel of a frame is seen in the next,
and the features of the next frame, taken from there, shall be those of this one: a prediction in feature space at every scale. On
constant features every flow predicts perfectly: what keeps them apart is `prevention`, at every scale, or what the flow must explain
of the frames themselves. Nothing here needs to know the true flow.

    B batch    T steps    P = B (T-1) pairs of neighbouring frames    R = 2 P: each pair both ways, forward first    S scales
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
Hidden = Callable[[Tensor, Tensor], Tensor]
"""Flows both ways (R, 2, H, W) -> which pixels are not seen in the other frame (R, H, W), without gradient."""

HIDDEN: dict[Occlusion, Hidden] = {
    "range": lambda forth, back: (reached(back) < 0.5) | ~inside(forth.detach()),
    "check": occluded,
    "outside": lambda forth, back: ~inside(forth.detach()),
}

PLACES = 64
"""Places of a map, evenly spread, that are watched for collapse."""


@dataclass(frozen=True)
class Match:
    """What of two ends of a pair belongs together, of every scale, finest first."""

    maps: list[Tensor]
    """(R, C, H, W) each."""
    aims: list[Tensor]
    """What they are as targets."""
    flows: list[Tensor]
    """(R, 2, H, W) each, in pixels of its map."""
    full: Tensor
    """(R, 2, H, W): the flow of the frames."""
    moved: list[Tensor]
    """The maps of the other end, seen from where the flows point to."""


class Motion(nn.Module):
    """Optical flow between the frames that it reads, from the maps of its encoder, without supervision.

    Its states are the maps and tokens of the encoder. The flow of a scale is the up-sampled flow of the coarser one and what the
    estimator adds; that of the finest is enlarged to the frames. All losses see both directions, and all count for every scale.

    encoder, energy, prevention: components; the encoder must give maps. A prevention that gives targets (`ema`, `stop_gradient`)
        gives those of the regression; the terms of the others are taken of every scale, with positions and batch as samples.
    skips: how many of the finest maps take no part: estimation ends at the next one, of which the flow of the frames is made (PWC-Net
        ends at stride 4, arXiv:1709.02371). Most of the work is that of the finest.
    again: how often the finest map is gone through once more, with the flow that was found there, where the level says what flows
        (`predictions`): as RAFT iterates, but nothing is learned for it, and it need not help.
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
        skips: Whole = 0,
        again: Whole = 0,
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
        if skips >= len(self.spec.maps):
            raise ValueError(f"skips is {skips}, and the encoder gives {len(self.spec.maps)} maps: one at least must be left")
        self.skips, matched = skips, self.spec.maps[skips:]
        channels, stride = [count for count, _, _ in matched], spec.maps[0][1] // matched[0][1]
        self.estimator = Estimator(channels, width, radius, hidden, dropout, stride)
        self.energy = energy(self.spec)
        self.strides = [f"stride{spec.maps[0][1] // height}" for _, height, _ in matched]
        self.preventions = nn.ModuleList(_of_scales(replace(self.spec, maps=matched), prevention))
        self.targets.bind(self.encoder)
        self.hidden, self.occlusion_after, self.edges = HIDDEN[occlusion], occlusion_after, edges
        self.coarser, self.finer, self.again, self.needs = coarser, finer, again, 2
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
        both = [_both_ways(one) for one in self.encode(below).maps[self.skips :]]
        scales, flow = self.estimator(both, [_swapped(one) for one in both], self.again)
        said = {"flow": flow, "occluded": self.hidden(flow, _swapped(flow))}
        said |= {f"flow_{number}": scale for number, scale in enumerate(scales)}
        return {name: _of_samples(one[: len(one) // 2], below) for name, one in said.items()}

    # --- what it learns from ---

    def forward(self, here: Here) -> Outcome:
        """One step of training: the energy (B, T-1) of features after warping, the mean over scales, directions and all pixels.

        The baseline `trivial` is no motion at all; `shuffled` has the next frames of another sample, and the flow that fits them.
        """
        states, targets = here.states, self.targets.targets(here)
        match = self._match(states, targets)
        energies = self._energies(match.moved, match.aims)
        shape = len(states.time), states.steps - 1
        terms = self._terms(here, match, energies)
        terms |= self._kept_apart(here, states, match)
        with torch.no_grad():
            still = self._energies([_swapped(one) for one in match.maps], match.aims)
        outcome = Outcome(_mean(energies, shape), _mean(still, shape), terms, self._watched(states))
        return outcome if self.training or shape[0] == 1 else replace(outcome, shuffled=self._shuffled(states, targets))

    def _match(self, states: States, targets: States, roll: int = 0) -> Match:
        maps, aims = ([_both_ways(one, roll) for one in of.maps[self.skips :]] for of in (states, targets))
        others = [_swapped(one) for one in maps]
        scales, full = self.estimator(maps, others)
        flows = scales[::-1]
        return Match(maps, aims, flows, full, [warped(other, flow) for other, flow in zip(others, flows, strict=True)])

    def _energies(self, moved: Sequence[Tensor], aims: Sequence[Tensor]) -> list[Tensor]:
        """Of every scale: maps (R, C, H, W) each -> (R, H, W)."""
        return [self.energy(one.movedim(1, -1), aim.movedim(1, -1)) for one, aim in zip(moved, aims, strict=True)]

    def _terms(self, here: Here, match: Match, energies: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the flows of every scale must explain, by name and weighted; the mean over scales."""
        weight = {name: value for name, schedule in self.weights.items() if (value := schedule(here.step))}
        hidden = self.hidden if here.step >= self.occlusion_after else HIDDEN["outside"]
        frames = _both_ways(here.below.maps[0])
        enlarged = [match.full, *(upsampled(flow, _size(frames)) for flow in match.flows[1:])]
        found: dict[str, list[Tensor]] = {name: [] for name in weight}
        for scale, flow in enumerate(match.flows):
            shown = self._of_frames(frames, enlarged[scale], hidden, weight) | self._of_flow(frames, flow, weight)
            terms = {name: self.coarser**scale * term for name, term in shown.items()}
            for name, term in (self._of_features(match, scale, energies[scale], hidden, weight) | terms).items():
                found[name].append(term)
        return {name: weight[name] * torch.stack(terms).mean() for name, terms in found.items()}

    def _of_features(
        self, match: Match, scale: int, energy: Tensor, hidden: Hidden, weight: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """How features differ that come along a flow, energy (R, H, W), and those that go along it and come back."""
        aim, flow = match.aims[scale], match.flows[scale]
        seen = ~hidden(flow, _swapped(flow))
        found = {"regression": masked_mean(energy, seen).mean()} if "regression" in weight else {}
        if "cycle" in weight:
            home = warped(warped(match.maps[scale], _swapped(flow)), flow)
            found["cycle"] = masked_mean(self._energies([home], [aim])[0], seen).mean()
        return found

    def _of_frames(self, frames: Tensor, flow: Tensor, hidden: Hidden, weight: Mapping[str, float]) -> dict[str, Tensor]:
        """How frames (R, C, H, W) differ where a flow (R, 2, H, W) says that they agree."""
        wanted = [name for name in PHOTOMETRIC if name in weight]
        if not wanted:
            return {}
        seen, moved = ~hidden(flow, _swapped(flow)), warped(_swapped(frames), flow)
        return {name: masked_mean(PHOTOMETRIC[name](moved, frames), seen).mean() for name in wanted}

    def _of_flow(self, frames: Tensor, flow: Tensor, weight: Mapping[str, float]) -> dict[str, Tensor]:
        """How large a flow (R, 2, H, W) is, and how it changes where frames do not."""
        small = F.interpolate(frames, _size(flow), mode="area")
        orders = {name: order for order, name in enumerate(("slowness", "smoothness", "curvature")) if name in weight}
        return {name: smoothness(flow, small, order, self.edges).mean() for name, order in orders.items()}

    def _kept_apart(self, here: Here, states: States, match: Match) -> dict[str, Tensor]:
        """The preventions' terms of every scale, named by its stride: less, the finer it is."""
        found: dict[str, Tensor] = {}
        for scale, preventions in enumerate(self.preventions):
            assert isinstance(preventions, Preventions)
            pair = Pair(_rows(match.moved[scale]), _rows(match.aims[scale]), _tokens(states.maps[self.skips + scale]))
            share = self.finer ** (len(self.strides) - 1 - scale)
            found |= {f"{name}.{self.strides[scale]}": share * term for name, term in preventions.terms(pair, here).items()}
        return found

    def _watched(self, states: States) -> dict[str, Tensor]:
        """Embeddings of every scale (rows, C), of some of its places."""
        return {
            name: _tokens(one)[:, :, :: -(-one.shape[3] * one.shape[4] // PLACES)].detach().flatten(0, 2)
            for name, one in zip(self.strides, states.maps[self.skips :], strict=True)
        }

    @torch.no_grad()
    def _shuffled(self, states: States, targets: States) -> Tensor:
        """(B, T-1): from frames to the next frames of the sample before, and from these back."""
        match = self._match(states, targets, roll=1)
        return _mean(self._energies(match.moved, match.aims), (len(states.time), states.steps - 1))


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
