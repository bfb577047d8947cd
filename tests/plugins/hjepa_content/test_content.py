"""The level of two views: what is compared with what, and that nothing is encoded twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hjepa import registry, runs, stack, train
from hjepa.contracts import Here, Outcome, Pair, Spec, States
from hjepa.errors import StudyMistake
from hjepa.randomness import Key
from hjepa.schedules import Schedule
from hjepa.study import parse
from hjepa_content.content import Content
from hjepa_encoders.latent_mlp import LatentMLP
from hjepa_energy.l2 import L2
from hjepa_forecast.causal import Causal
from hjepa_forecast.mlp import StepMLP
from hjepa_prevention.ema import Ema
from hjepa_prevention.inverse_dynamics import InverseDynamics
from hjepa_prevention.stop_gradient import StopGradient

ONE = Spec(width=3, grid=(2,), ticks=(0, 1), actions=2)
TWO = Spec(ticks=(0, 1), actions=2, parts=(ONE, ONE))


def built(kind: type, **options: Any) -> Any:
    """As a study's `Build` is."""

    def make(*neighbours: Any) -> Any:
        torch.manual_seed(0)
        return kind(*neighbours, **options)

    make.name = kind.__name__.lower()
    return make


class Kept:
    """A prevention that keeps what it is shown."""

    def __init__(self, spec: Spec) -> None:
        self.pair: Pair | None = None

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        self.pair = pair
        return {}


class Counting(LatentMLP):
    """How many samples it encoded."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, width=4, hidden=8)
        self.count = 0

    def forward(self, below: States, layers: Any = ()) -> Any:
        self.count += below.tokens.shape[0] * below.tokens.shape[1]
        return super().forward(below, layers)


def made(*preventions: Any, predictor: Any = None, encoder: Any = None, **options: Any) -> Content:
    encoder = encoder or built(LatentMLP, width=4, hidden=8)
    return Content(TWO, encoder=encoder, energy=built(L2), prevention=list(preventions), predictor=predictor, **options)


def views(batch: int = 5, seed: int = 0) -> States:
    draw = torch.Generator().manual_seed(seed)
    time, actions = torch.arange(2).expand(batch, 2), torch.zeros(batch, 1, 2)
    parts = tuple(States(torch.randn(batch, 2, 2, 3, generator=draw), time, (2,), actions=actions) for _ in "ab")
    return States(torch.zeros(batch, 2, 0, 0), time, actions=actions, parts=parts)


def here(level: Content, below: States) -> Here:
    view: Callable[[Any], States] = lambda encoder: pytest.fail("a level of two views is asked for both")  # noqa: E731
    key = Key.of(0).fold(torch.arange(len(below.time)))
    return Here(lambda: below, lambda: level.encode(below), view, key, Key.of(0, 1), 0)


def outcome(level: Content, below: States) -> Outcome:
    return level(here(level, below))


def embedded(level: Content, below: States) -> tuple[Tensor, Tensor]:
    first, second = (level.encoder(part).tokens for part in below.parts)
    return first, second


def test_without_a_predictor_embeddings_are_compared_as_they_are() -> None:
    level, below = made(), views()
    first, second = embedded(level, below)
    found = outcome(level, below)
    torch.testing.assert_close(found.energy, (first - second).square().mean((2, 3)))
    assert found.terms["agreement"] == found.energy.mean()
    torch.testing.assert_close(level.encode(below).tokens, first)
    assert level.encode(below).actions is below.parts[0].actions


@pytest.mark.parametrize("symmetric", [True, False])
def test_predictions_and_targets_are_aligned(symmetric: bool) -> None:
    level, below = made(built(Kept), predictor=built(StepMLP), symmetric=symmetric), views()
    found = outcome(level, below)
    pair = level.preventions._members["kept"].pair
    first, second = embedded(level, below)
    step = lambda x: level.predictor.step({"last": x.flatten(0, 1), "condition": x.new_zeros(10, 1, 0)})[0].view_as(x)  # noqa: E731
    predicted, target = [step(first), step(second)], [second, first]
    count = 2 if symmetric else 1
    torch.testing.assert_close(pair.prediction, torch.cat(predicted[:count], dim=1))
    torch.testing.assert_close(pair.target, torch.cat(target[:count], dim=1))
    torch.testing.assert_close(pair.embedding, torch.cat([first, second], dim=1))
    energies = [(one - other).square().mean((2, 3)) for one, other in zip(predicted[:count], target[:count])]
    torch.testing.assert_close(found.energy, torch.stack(energies).mean(0))


def test_the_baseline_is_the_mean_target_and_shuffled_is_anothers() -> None:
    level, below = made(predictor=built(StepMLP)).eval(), views()
    found, (first, second) = outcome(level, below), embedded(level, below)
    trivial = torch.stack([(x - x.mean(0)).square().mean((2, 3)) for x in (second, first)]).mean(0)
    torch.testing.assert_close(found.trivial, trivial)
    assert not found.trivial.requires_grad and not found.shuffled.requires_grad
    rolled = States(
        *(getattr(below, name) for name in ("tokens", "time")),
        parts=(below.parts[0], below.parts[1].rows(torch.tensor([4, 0, 1, 2, 3]))),
    )
    other = outcome(made(predictor=level_predictor(level), symmetric=False).eval(), rolled)
    alone = outcome(made(predictor=level_predictor(level), symmetric=False).eval(), below)
    torch.testing.assert_close(alone.shuffled, other.energy)
    assert outcome(level.train(), below).shuffled is None
    assert outcome(level.eval(), views(batch=1)).shuffled is None


def level_predictor(level: Content) -> Any:
    return lambda spec: level.predictor


@pytest.mark.parametrize("prevention", [None, StopGradient, Ema])
def test_targets_come_from_the_prevention_and_gradients_only_where_they_should(prevention: type | None) -> None:
    level, below = made(*([built(prevention)] if prevention else [])), views()
    first, second = (part.tokens.requires_grad_() for part in below.parts)
    shown = States(below.tokens, below.time, parts=below.parts)
    found = made(*([built(prevention)] if prevention else []), symmetric=False)(here(level, shown))
    found.terms["agreement"].backward()
    assert first.grad.any()
    assert (second.grad is not None and bool(second.grad.any())) == (prevention is None)


def test_a_teacher_sees_both_views() -> None:
    level, below = made(built(Ema), built(Kept)), views()
    with torch.no_grad():
        for weight in level.preventions._members["ema"].teacher.parameters():
            weight.mul_(0.5)
    outcome(level, below)
    pair, teacher = level.preventions._members["kept"].pair, level.preventions._members["ema"].teacher
    torch.testing.assert_close(pair.target, torch.cat([teacher(part).tokens for part in reversed(below.parts)], dim=1))


def test_nothing_is_encoded_twice() -> None:
    level, below = made(built(StopGradient), encoder=built(Counting), predictor=built(StepMLP)), views()
    outcome(level, below)
    assert level.encoder.count == 2 * 5 * 2


def test_tokens_that_are_not_there_do_not_count() -> None:
    """P14."""
    level, below = made(encoder=built(Passing)), views()
    for part in below.parts:
        object.__setattr__(part, "valid", torch.tensor([True, False]).expand(5, 2, 2))
    expected = (below.parts[0].tokens - below.parts[1].tokens)[:, :, 0].square().mean(-1)
    torch.testing.assert_close(outcome(level.eval(), below).energy, expected)


class Passing(nn.Module):
    """The tokens as they are, and which of them are there."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, below: States, layers: Any = ()) -> States:
        return below


def test_any_predictor_of_steps_will_do_and_its_weight_is_scheduled() -> None:
    level, below = made(predictor=built(Causal), weight_of_agreement=Schedule.of(0.25)), views()
    found = outcome(level, below)
    assert found.energy.shape == found.trivial.shape == (5, 2) and found.embeddings["states"].shape == (20, 4)
    torch.testing.assert_close(found.terms["agreement"], 0.25 * found.energy.mean())


@pytest.mark.parametrize("count", [1, 3])
def test_other_than_two_streams_are_refused(count: int) -> None:
    spec = ONE if count == 1 else Spec(parts=(ONE,) * count)
    with pytest.raises(ValueError, match=r"write `reads: \[one view, the other\]`"):
        Content(spec, encoder=built(LatentMLP), energy=built(L2))
    with pytest.raises(ValueError, match="different shapes"):
        Content(Spec(parts=(ONE, Spec(width=4))), encoder=built(LatentMLP), energy=built(L2))


# --- in a study -------------------------------------------------------------------------------------------------------


def small(**content: Any) -> dict[str, Any]:
    encoder = {"name": "conv", "width": 8, "base": 4, "stages": 2}
    level = {"name": "content", "reads": ["view", "other_view"], "encoder": encoder, "energy": "l2", "prevention": ["vicreg"]}
    keys = {"steps": 2, "log_every": 1, "diagnose_every": 1, "checkpoint_every": 2, "device": "cpu", "track": False}
    return {
        "data": {"digits": {"name": "digits", "batch": 6, "samples": 12, "held_out": 8}},
        "levels": {"content": level | content},
        "train": keys,
        "evaluate": {"samples": 32},
        "probes": {"digit": {"name": "linear", "level": "content", "target": "label"}},
    }


def trained(raw: dict[str, Any], folder: Path) -> train.Result:
    plugins = registry.load()
    plan = parse(raw, plugins)
    plan.complain()
    stack.check(plan)
    run = runs.create(plan, folder, plugins)
    return train.train(plan, run, plugins, False, lambda said: None, lambda trainer, values: None, lambda result: None)


@pytest.mark.parametrize("prevention", ["stop_gradient", "ema", "vicreg"])
def test_it_trains_with_a_predictor(prevention: str, tmp_path: Path) -> None:
    raw = small(prevention=[prevention], predictor={"name": "mlp", "batch_norm": True})
    result = trained(raw, tmp_path / "run")
    assert result.outcome == "done" and result.metrics["probe/digit/accuracy"] >= 0


def test_a_forecast_reads_it_and_levels_share_an_encoder(tmp_path: Path) -> None:
    raw = small()
    raw["levels"]["again"] = {
        **raw["levels"]["content"],
        "encoder": {"share": "content.encoder"},
        "reads": ["other_view", "view"],
    }
    result = trained(raw, tmp_path / "run")
    assert set(result.verdicts) == {"content", "again"}


def test_two_streams_of_a_video_and_a_forecast_above(tmp_path: Path) -> None:
    raw = small(reads=["frames", "frames"])
    raw["data"] = {
        "video": {"name": "moving_digits", "frames": 4, "size": 16, "digit_size": 8, "batch": 4, "samples": 8, "held_out": 8}
    }
    above = {"name": "forecast", "reads": "content", "encoder": {"name": "latent_mlp", "width": 4, "hidden": 8}}
    raw["levels"]["course"] = {**above, "predictor": "mlp", "energy": "l2", "prevention": ["vicreg"]}
    raw["probes"] = {}
    assert trained(raw, tmp_path / "run").outcome == "done"


def test_nothing_is_done_between_two_views() -> None:
    with pytest.raises(ValueError, match="this level has no actions"):
        made(built(InverseDynamics))


def test_a_study_with_one_view_is_told_what_to_write() -> None:
    plan = parse(small(reads="view"), registry.load())
    with pytest.raises(StudyMistake, match=r"levels.content: content compares two views, and it reads one stream"):
        stack.check(plan)


def test_views_are_compared_behind_the_expander_and_the_states_lie_before_it() -> None:
    """Also a teacher's: its states go through the same expander."""
    level, below = made(built(Ema), built(Kept), expander=(6, 7), predictor=built(StepMLP)).eval(), views()
    with torch.no_grad():
        for weight in level.preventions._members["ema"].teacher.parameters():
            weight.mul_(0.5)
    found = outcome(level, below)
    pair, teacher = level.preventions._members["kept"].pair, level.preventions._members["ema"].teacher
    both, told = (torch.cat([encode(part).tokens for part in parts], 1) for encode, parts in zip(
        (level.encoder, teacher), (below.parts, below.parts[::-1])))  # fmt: skip
    level.expander(both)
    torch.testing.assert_close(found.embeddings["states"], both.flatten(0, 2))
    torch.testing.assert_close(pair.embedding, level.expander(both))
    assert pair.prediction.shape == pair.target.shape == (5, 4, 1, 7) and not pair.target.requires_grad
    torch.testing.assert_close(pair.target, level.expander(told))
    assert level.spec.width == level.encode(below).tokens.shape[-1] == 4
