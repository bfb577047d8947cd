"""The level of flow: what is warped onto what, what counts, what is kept apart, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hjepa.contracts import Features, Here, Outcome, Pair, Spec, States
from hjepa.nn.warping import upsampled, warped
from hjepa.randomness import Key
from hjepa.schedules import Schedule
from hjepa_encoders.pyramid import Pyramid
from hjepa_energy.l2 import L2
from hjepa_motion.estimator import Flows
from hjepa_motion.losses import l1
from hjepa_motion.motion import HIDDEN, Motion
from hjepa_prevention.ema import Ema
from hjepa_prevention.stop_gradient import StopGradient
from hjepa_prevention.vicreg import Vicreg

SPEC = Spec(maps=((1, 16, 16),), ticks=(0, 1, 2))
TERMS = ("regression", "l1", "l2", "ssim", "census", "slowness", "smoothness", "curvature", "cycle")


def built(kind: type, **options: Any) -> Any:
    """As a study's `Build` is."""

    def make(*neighbours: Any) -> Any:
        torch.manual_seed(0)
        return kind(*neighbours, **options)

    make.name = kind.__name__.lower()
    return make


class Halves(nn.Module):
    """Means of 2 x 2 pixels, and of 4 x 4: maps whose motion is that of the frames."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.spec = spec.giving(1, maps=((1, 8, 8), (1, 4, 4)))

    def forward(self, below: States, layers: Any = ()) -> Features:
        frames = self.scale * below.maps[0].flatten(0, 1)
        maps = [nn.functional.avg_pool2d(frames, side).unflatten(0, below.time.shape) for side in (2, 4)]
        return Features(maps[-1].mean((3, 4))[:, :, None], tuple(maps))


class Kept:
    """A prevention that keeps what it is shown."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.pair = spec, None

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        self.pair = pair
        return {"one": pair.embedding.sum() * 0 + 1}


def made(*preventions: Any, encoder: Any = None, **options: Any) -> Motion:
    torch.manual_seed(0)
    encoder = encoder or built(Halves)
    small = {"width": 3, "hidden": (6,), "radius": 1}
    weights = {name: Schedule.of(value) for name, value in options.items() if name.startswith("weight_of")}
    return Motion(SPEC, encoder=encoder, energy=built(L2), prevention=list(preventions), **small | options | weights)


def frames(batch: int = 3, steps: int = 3, seed: int = 0) -> States:
    shown = torch.rand(batch, steps, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return States(torch.zeros(batch, steps, 0, 0), torch.arange(steps).expand(batch, -1), maps=(shown,))


def here(level: Motion, below: States, step: int = 0) -> Here:
    states = lambda: level.encode(below)  # noqa: E731
    view = lambda encoder: level.encode(below) if encoder is None else Motion.encode(Seen(encoder), below)  # noqa: E731
    return Here(lambda: below, states, view, Key.of(0).fold(torch.arange(len(below.time))), Key.of(0, 1), step)


class Seen:
    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder


def outcome(level: Motion, below: States, step: int = 0) -> Outcome:
    return level(here(level, below, step))


def moves(level: Motion, x: float, y: float) -> Motion:
    """The level with an estimator that says at each scale that everything moves by (x, y) pixels of the frames."""

    def flows(one: list[Tensor], other: list[Tensor]) -> Flows:
        sign = torch.ones(len(one[0]), 1, 1, 1)
        sign[len(sign) // 2 :] = -1
        whole = sign * torch.tensor([x, y]).view(1, 2, 1, 1).expand(len(sign), 2, 16, 16)
        return Flows([upsampled(whole, maps.shape[2:]) for maps in reversed(one)], whole)

    level.estimator.forward = flows
    return level


def one_way(one: list[Tensor], other: list[Tensor]) -> Flows:
    """Whichever frame comes first, everything moves to the lower right."""
    return Flows([torch.ones(12, 2, *maps.shape[2:]) for maps in reversed(one)], torch.ones(12, 2, 16, 16))


# --- what it says -----------------------------------------------------------------------------------------------------


def test_predictions_are_flow_occlusion_and_the_flow_of_every_scale() -> None:
    level, below = made(), frames()
    said = level.predictions(below)
    assert {name: tuple(one.shape) for name, one in said.items()} == {
        "flow": (3, 2, 2, 16, 16),
        "occluded": (3, 2, 16, 16),
        "flow_0": (3, 2, 2, 4, 4),
        "flow_1": (3, 2, 2, 8, 8),
    }
    assert said["occluded"].dtype == torch.bool
    assert (said["flow"][1] - upsampled(said["flow_1"][1], (16, 16))).abs().max() < 0.2 * said["flow"].abs().max()


def test_flow_is_from_each_frame_to_the_next() -> None:
    """F10: of a pair alone the same, and with the frames swapped it is the flow back."""
    level, below = made(), frames()
    torch.testing.assert_close(level.predictions(below)["flow"][:, 1:], level.predictions(below.slice(1, 3))["flow"])
    turned = States(below.tokens, below.time, maps=(below.maps[0].flip(1),))
    maps = (
        [one[:, :2].flatten(0, 1) for one in level.encode(turned).maps],
        [one[:, 1:].flatten(0, 1) for one in level.encode(turned).maps],
    )
    torch.testing.assert_close(level.predictions(turned)["flow_1"].flatten(0, 1), level.estimator(*maps).scales[-1])
    torch.testing.assert_close(level.predictions(turned)["flow"].flatten(0, 1), level.estimator(*maps).frames)


def test_states_are_the_maps_and_the_token_of_the_encoder() -> None:
    level, below = made(), frames()
    states = level.encode(below)
    assert level.spec.maps == ((1, 8, 8), (1, 4, 4)) and level.spec.width == 1 and level.needs == 2
    assert states.tokens.shape == (3, 3, 1, 1) and [one.shape[-1] for one in states.maps] == [8, 4]


# --- what it learns from ----------------------------------------------------------------------------------------------


def shifted(x: int) -> States:
    """A picture that moves by x pixels to the right at each step; what enters is what left."""
    below = frames(steps=1)
    moved = torch.cat([below.maps[0].roll(x * step, -1) for step in range(3)], dim=1)
    return States(torch.zeros(3, 3, 0, 0), torch.arange(3).expand(3, -1), maps=(moved,))


def test_the_true_flow_has_less_energy_than_none_and_none_is_the_baseline() -> None:
    below = shifted(4)
    true, still, wrong = (outcome(moves(made(), x, 0.0), below) for x in (4.0, 0.0, -4.0))
    assert (true.energy < 0.5 * still.energy).all() and (true.energy < 0.5 * wrong.energy).all()
    torch.testing.assert_close(still.energy, still.trivial)
    assert true.energy.shape == true.trivial.shape == (3, 2)
    assert not true.trivial.requires_grad


def test_energy_is_the_mean_over_scales_directions_and_pixels() -> None:
    level, below = moves(made(), 2.0, 0.0), frames()
    expected = []
    for one in level.encode(below).maps:
        flow = torch.tensor([2.0 * one.shape[-1] / 16, 0.0]).view(1, 2, 1, 1).expand(6, 2, *one.shape[3:])
        now, later = one[:, :-1].flatten(0, 1), one[:, 1:].flatten(0, 1)
        both = (warped(later, flow) - now).square() + (warped(now, -flow) - later).square()
        expected.append(both.mean((1, 2, 3)).view(3, 2) / 2)
    torch.testing.assert_close(outcome(level, below).energy, torch.stack(expected).mean(0))


@pytest.mark.parametrize("name", ["l1", "l2", "ssim", "census", "regression"])
def test_every_term_prefers_the_true_flow(name: str) -> None:
    weights = {f"weight_of_{other}": float(other == name) for other in TERMS}
    below = shifted(4)
    true, wrong = (outcome(moves(made(**weights), x, 0.0), below).terms for x in (4.0, -4.0))
    assert list(true) == [name]
    assert true[name] < 0.8 * wrong[name]


def test_the_cycle_asks_that_forth_and_back_lead_home() -> None:
    level, below = made(weight_of_regression=0.0, weight_of_cycle=1.0, occlusion="outside"), shifted(4)
    home = outcome(moves(level, 4.0, 0.0), below).terms["cycle"]
    level.estimator.forward = one_way
    assert home < 0.5 * outcome(level, below).terms["cycle"]


def test_terms_are_weighted_and_those_of_weight_0_are_left_out() -> None:
    plain = outcome(made(**{f"weight_of_{name}": 1.0 for name in TERMS}), frames()).terms
    twice = outcome(made(**{f"weight_of_{name}": 2.0 for name in TERMS}), frames()).terms
    assert tuple(plain) == TERMS
    for name, term in plain.items():
        torch.testing.assert_close(twice[name], 2 * term)
    assert not outcome(made(weight_of_regression=0.0), frames()).terms


def test_coarser_scales_count_less() -> None:
    below, weights = shifted(4), {"weight_of_regression": 0.0, "weight_of_l1": 1.0, "occlusion": "outside"}
    level = moves(made(coarser=0.25, **weights), 4.0, 0.0)
    shown = below.maps[0]
    flow = torch.tensor([4.0, 0.0]).view(1, 2, 1, 1).expand(6, 2, 16, 16)
    now, later = shown[:, :-1].flatten(0, 1), shown[:, 1:].flatten(0, 1)
    difference = l1(warped(later, flow), now)[:, :, :12].mean() + l1(warped(now, -flow), later)[:, :, 4:].mean()
    torch.testing.assert_close(outcome(level, below).terms["l1"], (1 + 0.25) / 2 * difference / 2)


def test_what_is_hidden_does_not_count_once_that_counts() -> None:
    """Pixels from which forth and back does not lead home: here all, since both flows say the same."""
    weights = {"weight_of_regression": 0.0, "weight_of_l1": 1.0, "occlusion": "check", "occlusion_after": 5}
    level = made(**weights)
    level.estimator.forward = one_way
    assert outcome(level, frames(), step=4).terms["l1"] > 0.1
    assert outcome(level, frames(), step=5).terms["l1"] == 0


@pytest.mark.parametrize("name", HIDDEN)
def test_occlusion_has_no_gradient(name: str) -> None:
    flow = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hidden = HIDDEN[name](flow, flow.roll(2, 0))
    assert hidden.shape == (4, 8, 8) and hidden.dtype == torch.bool and not hidden.requires_grad
    still = HIDDEN[name](torch.zeros(4, 2, 8, 8), torch.zeros(4, 2, 8, 8))
    assert not still.any()


def test_gradient_reaches_encoder_and_estimator() -> None:
    level = made(encoder=built(Pyramid, widths=(4, 6), depths=(1, 1)), weight_of_l1=1.0)
    found = outcome(level, frames()).terms
    found["regression"].backward(retain_graph=True)
    matching = [weight for name, weight in level.estimator.named_parameters() if not name.startswith("enlarge")]
    for weights in (level.encoder.parameters(), matching):
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)
    found["l1"].backward()
    assert all(weight.grad.abs().sum() > 0 for weight in level.estimator.enlarge.parameters())


@pytest.mark.parametrize("kind", [StopGradient, Ema])
def test_targets_may_come_from_a_prevention(kind: type) -> None:
    level = made(built(kind), built(Kept))
    assert [preventions.names for preventions in level.preventions] == [[kind.__name__.lower(), "kept"], ["kept"]]
    outcome(level, frames())
    pairs = [preventions._members["kept"].pair for preventions in level.preventions]
    assert all(pair.prediction.requires_grad and not pair.target.requires_grad for pair in pairs)


def test_preventions_see_every_scale_and_finer_ones_count_less() -> None:
    level, below = made(built(Kept), finer=0.5), frames()
    found = outcome(level, below).terms
    assert {name: float(term.detach()) for name, term in found.items() if name != "regression"} == {
        "kept.one.stride2": 0.5,
        "kept.one.stride4": 1.0,
    }
    for preventions, one in zip(level.preventions, level.encode(below).maps):
        kept = preventions._members["kept"]
        assert kept.spec.width == 1 and kept.spec.grid == one.shape[3:]
        torch.testing.assert_close(kept.pair.embedding, one.flatten(3).mT)
        assert kept.pair.prediction.shape == kept.pair.target.shape == (12, one.shape[3] * one.shape[4], 1)


def test_every_scale_is_watched() -> None:
    found = outcome(made(), frames()).embeddings
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {"stride2": (3 * 3 * 64, 1), "stride4": (3 * 3 * 16, 1)}
    assert not any(rows.requires_grad for rows in found.values())


def test_the_finest_maps_can_be_left_alone() -> None:
    """They are states all the same; flow, energy, preventions and diagnostics begin at the next scale."""
    level, below = made(built(Kept), skips=1), frames()
    assert [one.shape[-1] for one in level.encode(below).maps] == [8, 4]
    said = level.predictions(below)
    assert said["flow"].shape == (3, 2, 2, 16, 16) and said["flow_0"].shape == (3, 2, 2, 4, 4) and "flow_1" not in said
    found = outcome(level, below)
    assert list(found.terms) == ["regression", "kept.one.stride4"] and list(found.embeddings) == ["stride4"]
    torch.testing.assert_close(level.preventions[0]._members["kept"].pair.embedding, level.encode(below).maps[1].flatten(3).mT)
    coarse = level.encode(below).maps[1]
    now, later = coarse[:, :-1], coarse[:, 1:]
    torch.testing.assert_close(outcome(moves(level, 0.0, 0.0), below).energy, (now - later).square().mean((2, 3, 4)))


def test_one_map_must_be_left() -> None:
    with pytest.raises(ValueError, match="skips is 2, and the encoder gives 2 maps"):
        made(skips=2)


def test_what_it_says_may_go_through_the_finest_scale_again_and_what_it_learns_does_not() -> None:
    below = frames()
    once, more = (made(again=again) for again in (0, 2))
    assert torch.equal(outcome(once, below).energy, outcome(more, below).energy)
    said, again = once.predictions(below), more.predictions(below)
    assert torch.equal(said["flow_0"], again["flow_0"]) and not torch.equal(said["flow"], again["flow"])


def test_shuffled_are_the_next_frames_of_another_sample_while_evaluating() -> None:
    level, below = made(), frames()
    assert outcome(level, below).shuffled is None
    level.eval()
    assert outcome(level, frames(batch=1)).shuffled is None
    found = outcome(level, below).shuffled
    first = below.maps[0][:, :2].clone()
    first[:, 1] = below.maps[0][[2, 0, 1], 1]
    mixed = outcome(level, States(below.tokens, below.time[:, :2], maps=(first,)))
    torch.testing.assert_close(found[:, :1], mixed.energy)


@pytest.mark.parametrize("prevention", [(), (Vicreg,)])
def test_a_batch_of_one_black_frames_and_half_precision_stay_finite(prevention: tuple[type, ...]) -> None:
    weights = {f"weight_of_{name}": 1.0 for name in TERMS}
    level = made(*(built(kind) for kind in prevention), encoder=built(Pyramid, widths=(4, 6), depths=(1, 1)), **weights)
    black = States(torch.zeros(1, 2, 0, 0), torch.arange(2)[None], maps=(torch.zeros(1, 2, 1, 16, 16),))
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(level, black)
    torch.stack([term.float() for term in found.terms.values()]).sum().backward()
    assert found.energy.isfinite().all() and all(term.isfinite() for term in found.terms.values())
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in level.parameters())


@pytest.mark.parametrize(
    ("spec", "encoder", "said"),
    [(Spec(width=4), Halves, "no maps"), (SPEC, "conv", "encoder gives none")],
)
def test_what_cannot_flow_is_refused(spec: Spec, encoder: Any, said: str) -> None:
    from hjepa_encoders.conv import Conv

    with pytest.raises(ValueError, match=said):
        Motion(spec, encoder=built(Conv if encoder == "conv" else encoder), energy=built(L2))


def test_it_learns_how_a_picture_moves() -> None:
    """Smooth pictures that move by up to two pixels, in a hundred steps: much of the error of no motion is gone."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    level = made(built(StopGradient), weight_of_l1=3.0, width=8, hidden=(16, 12), radius=2)
    optimizer = torch.optim.Adam(level.parameters(), lr=5e-3)

    def shown() -> tuple[States, Tensor]:
        field = nn.functional.interpolate(torch.rand(8, 1, 10, 10, generator=draw), 40, mode="bicubic")
        x, y = torch.randint(-2, 3, (2, 8), generator=draw)
        at = [
            torch.stack([one[:, 10 - b : 26 - b, 10 - a : 26 - a] for one, a, b in zip(field, u, v)])
            for u, v in ((0 * x, 0 * y), (x, y))
        ]
        true = torch.stack((x, y), dim=1).float()[:, None, :, None, None]
        return States(torch.zeros(8, 2, 0, 0), torch.arange(2).expand(8, 2), maps=(torch.stack(at, dim=1),)), true

    for _ in range(100):
        below, _ = shown()
        optimizer.zero_grad()
        torch.stack(list(outcome(level, below).terms.values())).sum().backward()
        optimizer.step()
    below, true = shown()
    error = (level.predictions(below)["flow"] - true).norm(dim=2)[..., 3:-3, 3:-3].mean()
    assert error < 0.7 * true.norm(dim=2).mean()
