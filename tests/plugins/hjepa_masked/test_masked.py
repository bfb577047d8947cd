"""The level that fills in what is masked: what it compares, what it never sees, and what it says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor, nn

from hjepa import registry, runs, stack, train
from hjepa.contracts import Features, Here, Outcome, Packed, Pair, Spec, States
from hjepa.nn.packing import packed, row_keys, sets, taken
from hjepa.nn.states import states_of
from hjepa.randomness import Key
from hjepa.schedules import Schedule
from hjepa.study import parse
from hjepa_attention.sdpa import SDPA
from hjepa_encoders.vit import ViT
from hjepa_energy.l2 import L2
from hjepa_masked import masked
from hjepa_masked.mask_tokens import MaskTokens
from hjepa_masked.masked import Masked, Told, _row_means, _set_means
from hjepa_masked.multiblock import Multiblock
from hjepa_masked.multiblock3d import Multiblock3d
from hjepa_prevention.ema import Ema
from hjepa_prevention.stop_gradient import StopGradient
from hjepa_prevention.vicreg import Vicreg

IMAGE = Spec(maps=((1, 12, 12),), ticks=(0, 1))
CLIP = Spec(maps=((4, 12, 12),), ticks=(3, 7), window=4)
EMA = {"momentum": Schedule.of(0.5)}


def built(kind: type, **options: Any) -> Any:
    """As a study's `Build` is."""

    def make(*neighbours: Any) -> Any:
        torch.manual_seed(0)
        return kind(*neighbours, **options)

    make.name = kind.__name__.lower()
    return make


class Odd(ViT):
    """Its states are not normed, as those of a trained one."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, width=16, depth=2, heads=2, patch=3, attention=SDPA)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)


def made(spec: Spec = IMAGE, *preventions: Any, **options: Any) -> Masked:
    usual = {
        "encoder": built(Odd),
        "predictor": built(MaskTokens, width=12, depth=1, heads=2, attention=SDPA),
        "masking": built(Multiblock, min_keep=2),
        "energy": built(L2),
        "prevention": list(preventions),
    }
    return Masked(spec, **(usual | options))


def films(**options: Any) -> Masked:
    return made(CLIP, built(Ema, **EMA), masking=built(Multiblock3d), **options)


def frames(spec: Spec, batch: int, seed: int = 0) -> States:
    shape = (batch, len(spec.ticks), *spec.maps[0])
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return States(maps.new_zeros(*shape[:2], 0, 0), torch.tensor(spec.ticks).expand(batch, -1), maps=(maps,))


def here(level: Masked, below: States, ids: Tensor | None = None) -> Here:
    ids = torch.arange(len(below.time)) if ids is None else ids

    def view(encoder: nn.Module | None) -> States:
        return made_here.states if encoder is None else states_of(encoder, made_here.below)

    made_here = Here(lambda: below, lambda: level.encode(below), view, Key.of(0).fold(ids), Key.of(0, 1), 0)
    return made_here


def masks(level: Masked, at: Here) -> dict[str, list[Packed]]:
    return level.masking.sample(row_keys(at.key, at.below.time))


def outcome(level: Masked, batch: int = 4, spec: Spec = IMAGE, **changes: Any) -> Outcome:
    return level(here(level, replace(frames(spec, batch), **changes)))


class Kept:
    """A prevention that keeps what it is shown."""

    def __init__(self, spec: Spec) -> None:
        self.pair: Pair | None = None

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        self.pair = pair
        return {}


# --- what is compared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [IMAGE, CLIP])
def test_the_energy_is_the_mean_over_sets_then_rows_then_families(spec: Spec) -> None:
    """Beside a loop over rows and sets, each filled in by itself."""
    level = made() if spec is IMAGE else films()
    below = frames(spec, 3)
    at = here(level, below)
    targets = F.layer_norm(level.preventions.targets(at).tokens, (16,)).flatten(0, 1)
    wanted = torch.zeros(6)
    families = masks(level, at)
    for context, *asked in families.values():
        seen = level.encoder.encode_kept(below, context)
        for one in asked:
            told = level.predictor(seen, one).values
            for row in range(6):
                inside = sets(one) == row
                right = targets[row, one.values[inside, 0]]
                wanted[row] += (told[inside] - right).square().mean() / len(asked) / len(families)
    found = level(at)
    torch.testing.assert_close(found.energy, wanted.view(3, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.terms["prediction"], wanted.mean(), atol=1e-5, rtol=1e-4)


def test_targets_are_normed_over_the_width() -> None:
    """I13, and that it can be left."""
    level = made(IMAGE, built(Ema, **EMA))
    targets = level._targets(here(level, frames(IMAGE, 3))).tokens
    torch.testing.assert_close(targets.mean(-1), torch.zeros(3, 2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.var(-1, correction=0), torch.ones(3, 2, 16), atol=1e-3, rtol=0)
    plain = made(IMAGE, built(Ema, **EMA), normalize=False)
    at = here(plain, frames(IMAGE, 3))
    torch.testing.assert_close(plain._targets(at).tokens, plain.encode(at.below).tokens)


@pytest.mark.parametrize("preventions", [[], [built(StopGradient)], [built(Ema, **EMA)]])
def test_the_mean_of_normed_layers_can_be_the_target(preventions: list[Any]) -> None:
    level = made(IMAGE, *preventions, layers=("block1", "block2"))
    at = here(level, frames(IMAGE, 3))
    layers = level.encoder(at.below, ("block1", "block2")).layers.values()
    wanted = torch.stack([F.layer_norm(layer, (16,)) for layer in layers]).mean(0)
    targets = level._targets(at).tokens
    torch.testing.assert_close(targets, wanted)
    assert targets.requires_grad == (not preventions)
    assert level(here(level, frames(IMAGE, 3))).energy.isfinite().all()


def test_baselines() -> None:
    """`trivial` is the mean of the context's targets; `shuffled` has those of the sample before, and only where it is asked for."""
    level = made(IMAGE, built(Ema, **EMA)).eval()
    at = here(level, frames(IMAGE, 3))
    targets = level._targets(at)
    context, *asked = masks(level, at)["block"]
    flat, other = targets.tokens.flatten(0, 1), targets.tokens.roll(1, 0).flatten(0, 1)
    seen = level.encoder.encode_kept(at.below, context)
    trivial, shuffled = torch.zeros(6), torch.zeros(6)
    for one in asked:
        told = level.predictor(seen, one).values
        for row in range(6):
            inside = one.values[sets(one) == row, 0]
            mean = flat[row, context.values[sets(context) == row, 0]].mean(0)
            trivial[row] += (mean - flat[row, inside]).square().mean() / len(asked)
            shuffled[row] += (told[sets(one) == row] - other[row, inside]).square().mean() / len(asked)
    found = level(at)
    torch.testing.assert_close(found.trivial, trivial.view(3, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.shuffled, shuffled.view(3, 2), atol=1e-5, rtol=1e-4)
    assert not found.trivial.requires_grad
    assert outcome(level, batch=1).shuffled is None
    assert outcome(level.train()).shuffled is None


# --- what is not seen -------------------------------------------------------------------------------------------------


def test_what_is_masked_does_not_reach_the_prediction() -> None:
    """I12: with other pixels where nothing is context, the same predictions."""
    level, below = made(IMAGE), frames(IMAGE, 3)
    at = here(level, below)
    context, *asked = masks(level, at)["block"]
    shown = torch.zeros(6, 16).index_put((sets(context), context.values[:, 0]), torch.ones(len(context.values)))
    hidden = (1 - shown).view(3, 2, 1, 4, 4).repeat_interleave(3, 3).repeat_interleave(3, 4)
    changed = replace(below, maps=(below.maps[0] + hidden * torch.rand_like(below.maps[0]),))
    one, other = (level.predictor(level.encoder.encode_kept(x, context), asked[0]).values for x in (below, changed))
    assert torch.equal(one, other)
    assert not torch.allclose(level.encode(below).tokens, level.encode(changed).tokens)


def test_nothing_reaches_the_teacher_and_everything_else_learns() -> None:
    """I10, P19."""
    level = films()
    found = outcome(level, spec=CLIP)
    sum(found.terms.values()).backward()
    (teacher,) = (module for name, module in level.named_modules() if name.endswith("teacher"))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    learning = [*level.encoder.named_parameters(), *level.predictor.named_parameters()]
    assert [name for name, parameter in learning if parameter.numel() and parameter.grad is None] == []
    assert level.predictor.tokens["short"].grad.abs().sum() > 0


def test_without_a_prevention_own_states_are_targets_with_gradient() -> None:
    level = made()
    targets = level._targets(here(level, frames(IMAGE, 2)))
    assert targets.tokens.requires_grad
    assert not made(IMAGE, built(StopGradient))._targets(here(level, frames(IMAGE, 2))).tokens.requires_grad


def test_the_teacher_looks_once_and_the_encoder_once_a_family() -> None:
    level, calls = films(), Counter[str]()
    (teacher,) = (module for name, module in level.named_modules() if name.endswith("teacher"))

    def counted(name: str) -> Callable[..., None]:
        return lambda *seen: calls.update([name])

    teacher.register_forward_hook(counted("teacher"))
    level.encoder.register_forward_hook(counted("whole"))
    level.encoder.norm.register_forward_hook(counted("contexts"))
    level.predictor.register_forward_hook(counted("predictor"))
    outcome(level.train(), spec=CLIP)
    assert calls == {"teacher": 1, "contexts": 2, "predictor": 2}


def test_what_a_sample_gives_does_not_depend_on_its_batch() -> None:
    """P7, and no statistics over the batch."""
    level = made(IMAGE, built(Ema, **EMA)).eval()
    below = frames(IMAGE, 4)
    order = torch.tensor([2, 0])
    whole, part = level(here(level, below)), level(here(level, below.rows(order), order))
    torch.testing.assert_close(part.energy, whole.energy[order])
    torch.testing.assert_close(part.trivial, whole.trivial[order])


# --- what it says -----------------------------------------------------------------------------------------------------


def test_preventions_see_predictions_targets_and_contexts() -> None:
    kept: list[Kept] = []

    def make(spec: Spec) -> Kept:
        kept.append(Kept(spec))
        return kept[0]

    make.name = "kept"  # type: ignore[attr-defined]
    level = made(CLIP, make, masking=built(Multiblock3d))
    at = here(level, frames(CLIP, 3))
    level(at)
    pair, families = kept[0].pair, masks(level, at).values()
    assert pair is not None
    asked = torch.cat([taken(level._targets(at).tokens, target).values for _, target in families])
    torch.testing.assert_close(pair.target, asked)
    assert pair.prediction.shape == asked.shape and pair.prediction.requires_grad
    assert pair.embedding.shape == (sum(len(context.values) for context, _ in families), 16) and pair.embedding.requires_grad


def test_a_penalty_holds_the_contexts_apart() -> None:
    found = outcome(made(IMAGE, built(Ema, **EMA), built(Vicreg)))
    assert set(found.terms) == {"prediction", "vicreg.std", "vicreg.cov"}
    assert all(term.isfinite() and term.requires_grad for term in found.terms.values())


def test_states_that_only_know_their_place_look_collapsed() -> None:
    """Tokens are looked at less the mean of their place; pooled states less their mean."""
    level = made(IMAGE, built(Ema, **EMA)).eval()
    level.encoder.embed.weight.data.zero_()
    found = outcome(level).embeddings
    assert list(found) == ["pooled", "tokens"]
    assert all(embedding.abs().max() < 1e-5 for embedding in found.values())
    assert level.encode(frames(IMAGE, 4)).tokens.std() > 0.1
    alive = outcome(made(IMAGE).eval()).embeddings
    assert alive["pooled"].shape == (8, 16) and alive["tokens"].shape == (8 * 16, 16)
    assert all(embedding.std() > 1e-3 for embedding in alive.values())
    assert outcome(made(IMAGE).train()).embeddings == {}


class Words(nn.Module):
    """Tokens as they are: an encoder that knows which are there."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.mix, self.spec = nn.Linear(spec.width, spec.width), spec.giving(spec.width, spec.grid)

    def forward(self, below: States, layers: Any = ()) -> Any:
        return Features(self.mix(below.tokens), valid=below.valid)

    def encode_kept(self, below: States, keep: Packed) -> Packed:
        return replace(keep, values=self.mix(taken(below.tokens, keep).values))


def test_tokens_that_are_not_there_change_nothing() -> None:
    """P14: padded tokens change neither value nor gradient, and rows without any do no harm."""
    spec = Spec(width=6, grid=(8,), ticks=(0,))
    level = made(spec, encoder=built(Words), masking=built(Multiblock, min_keep=1)).eval()
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(5, 1, 8, 6, generator=draw)
    valid = (torch.arange(8) < torch.tensor([8, 5, 3, 1, 0])[:, None])[:, None]
    given = [States(torch.where(valid[..., None], tokens, fill), torch.zeros(5, 1).long(), (8,), valid) for fill in (0.0, 9.0)]
    found, gradients = [], []
    for states in given:
        level.zero_grad()
        found.append(level(here(level, states)))
        found[-1].terms["prediction"].backward()
        gradients.append([parameter.grad for parameter in level.parameters()])
    assert found[0].energy.isfinite().all() and (found[0].energy[:3] > 0).all() and found[0].energy[4] == 0
    assert torch.equal(found[0].energy, found[1].energy) and torch.equal(found[0].trivial, found[1].trivial)
    assert all(torch.equal(one, other) and one.isfinite().all() for one, other in zip(*gradients, strict=True))
    assert all(torch.equal(found[0].embeddings[name], found[1].embeddings[name]) for name in ("pooled", "tokens"))


@settings(max_examples=8, deadline=None)
@given(batch=st.integers(1, 3), scale=st.sampled_from([0.0, 1.0, 1e4]), half=st.booleans(), film=st.booleans())
def test_everything_is_finite(batch: int, scale: float, half: bool, film: bool) -> None:
    """P14: a batch of one, zeros, large numbers, bfloat16."""
    spec = CLIP if film else IMAGE
    level = films() if film else made(IMAGE, built(Ema, **EMA))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = outcome(level.eval(), batch, spec, maps=(scale * frames(spec, batch).maps[0],))
    found.terms["prediction"].backward()
    assert found.energy.dtype is torch.float32 and found.energy.isfinite().all() and found.trivial.isfinite().all()
    assert all(p.grad.isfinite().all() for p in level.encoder.parameters() if p.grad is not None)


def test_an_empty_set_counts_as_nothing() -> None:
    lengths = torch.tensor([2, 0, 1, 0])
    assert _set_means(torch.tensor([1.0, 3.0, 5.0]), lengths).tolist() == [2.0, 0.0, 5.0, 0.0]
    asked = replace(packed(torch.zeros(4, 2, dtype=torch.bool), (2,)), lengths=lengths)
    context = packed(torch.ones(2, 2, dtype=torch.bool), (2,))
    assert _row_means(torch.tensor([1.0, 3.0, 5.0]), Told(context, asked, context, asked)).tolist() == [3.5, 0.0]


# --- what it draws ----------------------------------------------------------------------------------------------------


def titles(level: Masked, below: States) -> list[str]:
    """Of the first sample's panels."""
    figure = Figure()
    with torch.no_grad():
        level.eval().draw(here(level, below), figure)
    found = [axes.get_title().split("\n")[0] for axes in figure.axes if axes.get_title()]
    return found[: len(found) // 2]


def test_it_draws_every_family_and_the_teacher_where_there_is_one() -> None:
    level = films()
    (teacher,) = (module for name, module in level.named_modules() if name.endswith("teacher"))
    nn.init.normal_(teacher.embed.weight)
    assert titles(level, frames(CLIP, 3)) == ["frame 3", "short", "long", "encoder, PCA", "teacher, PCA"]
    assert titles(made(IMAGE, built(StopGradient)), frames(IMAGE, 3)) == ["image", "masked", "encoder, PCA"]
    assert titles(made(), frames(IMAGE, 2)) == ["image", "masked", "encoder, PCA"]


def test_the_masks_that_are_drawn_are_those_that_it_was_asked_with(monkeypatch: pytest.MonkeyPatch) -> None:
    level, seen = made(), []
    at = here(level, frames(IMAGE, 3))
    monkeypatch.setattr(masked, "draw", lambda figure, below, window, masks, states: seen.append((window, masks)))
    level.draw(at, Figure())
    ((window, drawn),) = seen
    for one, other in zip(drawn["block"], masks(level, at)["block"], strict=True):
        assert torch.equal(one.values, other.values)
    assert window == 1


@pytest.mark.parametrize("grid", [(8,), (4, 4)])
def test_of_words_and_states_there_is_no_picture(grid: tuple[int, ...]) -> None:
    """What it reads are tokens, whatever their grid."""
    level = made(Spec(width=6, grid=grid, ticks=(0,)), encoder=built(Words), masking=built(Multiblock, min_keep=1))
    tokens = torch.randn(3, 1, level.spec.tokens, 6, generator=torch.Generator().manual_seed(0))
    figure = Figure()
    level.draw(here(level, States(tokens, torch.zeros(3, 1).long(), grid)), figure)
    assert len(figure.get_children()) == 1


# --- end to end -------------------------------------------------------------------------------------------------------

STUDY = {
    "data": {"video": {"name": "moving_digits", "frames": 8, "size": 16, "digit_size": 8, "batch": 4, "held_out": 8}},
    "levels": {
        "clip": {
            "name": "masked",
            "stride": 2,
            "encoder": {"name": "vit", "width": 16, "depth": 1, "heads": 2, "patch": 4},
            "predictor": {"name": "mask_tokens", "width": 12, "depth": 1, "heads": 2},
            "masking": "multiblock3d",
            "energy": "l1",
            "prevention": [{"name": "ema", "momentum": 0.9}],
        },
        "course": {
            "name": "forecast",
            "encoder": {"name": "latent_mlp", "width": 8, "hidden": 16},
            "predictor": {"name": "causal", "depth": 1, "heads": 2, "width": 16},
            "energy": "l2",
            "prevention": ["vicreg"],
        },
    },
    "train": {"steps": 3, "diagnose_every": 2, "checkpoint_every": 2, "log_every": 1, "track": False, "device": "cpu"},
}


def test_it_trains_below_a_forecast(tmp_path: Path) -> None:
    found = registry.load()
    plan = parse(STUDY, found)
    stack.check(plan)
    run = runs.create(plan, tmp_path / "run", found)
    trainers: list[Any] = []
    train.train(plan, run, found, False, lambda said: None, lambda trainer, values: trainers.append(trainer), lambda said: None)
    trainer = trainers[-1]
    assert trainer.stack.composer.spec("clip", "video").grid == (2, 4, 4)
    assert set(trainer.look.verdicts) == {"clip", "course"}
    assert {"collapse/clip/std", "collapse/clip/tokens.std"} <= set(trainer.look.metrics)
