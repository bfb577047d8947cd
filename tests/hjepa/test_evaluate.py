"""Probes see frozen features of fixed samples, and whatever they do leaves a stack as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trainings
from matplotlib.figure import Figure
from trainings import FULL, PREDICTOR, SMALL, changed, digests, left

from hjepa import evaluate, runs, train
from hjepa.contracts import Features, Here, States
from hjepa.errors import Mistake
from hjepa.evaluate import Bench, Samples
from hjepa.report import summary
from hjepa.stack import Pass
from hjepa_forecast.forecast import Forecast
from hjepa_probes.regression import Regression


def state(trainer: train.Trainer) -> dict[str, str]:
    return digests(trainer.state()[0])


def bench(trainer: train.Trainer) -> Bench:
    return Bench(trainer.stack, Samples(trainer.sources, trainer.study, trainer.device))


@pytest.fixture
def trainer(tmp_path: Path) -> train.Trainer:
    """With dropout, batch norm and a queue; on the way, so that there are gradients."""
    made = trainings.opened(tmp_path / "run", FULL)
    for step, batches in train.loading.batches(made.sources, range(2), 0, made.device):
        made.step(step, batches)
    return made


# --- the bench --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
def test_looking_changes_nothing(trainer: train.Trainer, mode: bool) -> None:
    trainer.stack.train(mode)
    modes, before = {name: part.training for name, part in trainer.stack.named_modules()}, state(trainer)
    gradients = [parameter.grad.clone() for parameter in trainer.parameters if parameter.grad is not None]
    for level in ("frame", "moment"):
        seen, rolled = bench(trainer).observe(level, "test"), bench(trainer).predict(level, "test", 1, 2)
        assert not seen.states.tokens.requires_grad
        assert not rolled.tokens.requires_grad
    assert state(trainer) == before
    assert {name: part.training for name, part in trainer.stack.named_modules()} == modes
    now = [parameter.grad for parameter in trainer.parameters if parameter.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(gradients, now, strict=True))


def test_samples_are_kept_once_whoever_looks_at_them(trainer: train.Trainer, tmp_path: Path) -> None:
    """Films are large: a copy for each level, before and after training, was most of what a run took."""
    samples = Samples(trainer.sources, trainer.study, trainer.device)
    first, other = Bench(trainer.stack, samples), Bench(trainings.opened(tmp_path / "other", FULL).stack, samples)
    seen = [one.observe(level, "test").batch for one in (first, other) for level in ("frame", "moment")]
    assert all(batch["frames"] is seen[0]["frames"] for batch in seen)
    assert len(seen[0]["ids"]) > samples.batch  # it is put together of several
    alone = [samples.few("video", "test", start, samples.batch) for start in (0, samples.batch)]
    assert torch.equal(torch.cat([one["frames"] for one in alone]), seen[0]["frames"][: 2 * samples.batch])


def test_it_is_a_pure_function_of_the_samples(trainer: train.Trainer) -> None:
    """Also where the stack has dropout and batch norm, and whatever was looked at before."""
    first = bench(trainer)
    seen, rolled = first.observe("moment", "test"), first.predict("moment", "test", 1, 2)
    assert first.observe("moment", "test") is seen
    torch.rand(5)
    again = bench(trainer)
    again.observe("frame", "train")
    assert torch.equal(again.predict("moment", "test", 1, 2).tokens, rolled.tokens)
    assert torch.equal(again.observe("moment", "test").states.tokens, seen.states.tokens)


def test_chunks_do_not_show(trainer: train.Trainer) -> None:
    whole, parts = bench(trainer), bench(trainer)
    whole.batch, parts.batch = 100, 5
    for level in ("frame", "moment"):
        one, other = (each.observe(level, "test").states for each in (whole, parts))
        torch.testing.assert_close(one.tokens, other.tokens)
        assert torch.equal(one.time, other.time)
        one, other = (each.predict(level, "test", 0, 2) for each in (whole, parts))
        torch.testing.assert_close(one.tokens, other.tokens)
        assert torch.equal(one.time, other.time)


def test_the_first_samples_of_a_split_with_all_that_is_known_of_them(trainer: train.Trainer) -> None:
    seen = bench(trainer).observe("frame", "train")
    assert len(trainer.sources["video"].dataset.split("train")) > trainer.study.evaluate.samples == len(seen.batch["ids"])
    assert seen.batch["ids"].tolist() == list(range(trainer.study.evaluate.samples))
    expected = trainer.sources["video"].dataset.split("train").batch(seen.batch["ids"], trainer.device)
    assert all(torch.equal(seen.batch[name], expected[name]) for name in expected)


def test_a_prediction_is_what_the_level_rolls_out_of_the_states_it_knows(trainer: train.Trainer) -> None:
    found = bench(trainer)
    states = found.observe("moment", "test").states
    trainer.stack.eval()
    with torch.no_grad():
        expected = trainer.stack.levels["moment"].rollout(states.slice(0, 2), None, 2)
    rolled = found.predict("moment", "test", 1, 2)
    torch.testing.assert_close(rolled.tokens, expected.tokens)
    assert torch.equal(rolled.time, states.time[:, 2:4])


def test_what_comes_after_the_start_is_not_known(trainer: train.Trainer) -> None:
    found = bench(trainer)
    states, before = found.observe("moment", "test").states, found.predict("moment", "test", 1, 2)
    states.tokens[:, 2:] += 1
    assert torch.equal(found.predict("moment", "test", 1, 2).tokens, before.tokens)


def test_a_level_that_predicts_no_later_states(trainer: train.Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Forecast, "rollout")
    with pytest.raises(Mistake, match="level 'moment' predicts no later states: a forecast cannot"):
        bench(trainer).predict("moment", "test", 1, 2)


def test_what_a_level_says_besides_its_states(trainer: train.Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In evaluation mode, without gradient, of the same samples, whatever the chunks."""
    found = bench(trainer)
    with pytest.raises(Mistake, match="level 'moment' says nothing but its states: a forecast cannot"):
        found.predictions("moment", "test")

    def said(level: Forecast, below: States) -> dict[str, torch.Tensor]:
        assert not level.training and not torch.is_grad_enabled()
        return {"sum": below.tokens.sum(dim=(2, 3)) + level.encode(below).tokens.sum()[None, None] * 0}

    monkeypatch.setattr(Forecast, "predictions", said, raising=False)
    found.batch = 5
    expected = found.observe("frame", "test").states.tokens.sum(dim=(2, 3))
    for split in ("test", "train"):
        one = found.predictions("moment", split)["sum"]
        assert len(one) == len(found.observe("moment", split).batch["ids"]) and not one.requires_grad
    assert found.predictions("moment", "test")["sum"].shape[1] < expected.shape[1]


def test_tokens_that_are_not_there_stay_so(trainer: train.Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench(trainer)
    states = found.observe("moment", "test").states
    valid = torch.rand(states.tokens.shape[:3]) > 0.5
    seen = found._seen["moment", "test", "online"]
    object.__setattr__(seen.states, "valid", valid)
    known: list[States] = []
    rollout = Forecast.rollout
    monkeypatch.setattr(Forecast, "rollout", lambda self, start, *rest: (known.append(start), rollout(self, start, *rest))[1])
    found.predict("moment", "test", 1, 2)
    assert torch.equal(torch.cat([start.valid for start in known if start.valid is not None]), valid[:, :2])


def test_target_features_are_those_of_the_teacher(trainer: train.Trainer) -> None:
    """P19: in evaluation mode, without gradient, and nothing of it is changed."""
    found, level, before = bench(trainer), trainer.stack.level("frame"), state(trainer)
    online, target = (found.observe("frame", "test", features) for features in ("online", "target"))
    batch, teacher = next(found._batches("frame", "test")), level.preventions.parts["ema"].teacher
    trainer.stack.eval()
    with torch.no_grad():
        expected = teacher(Pass(trainer.stack, {"video": batch}, 0, whole=True).here("frame").below).tokens
    assert torch.equal(target.states.tokens[: len(expected)], expected) and not target.states.tokens.requires_grad
    assert not torch.equal(target.states.tokens, online.states.tokens) and torch.equal(target.batch["ids"], online.batch["ids"])
    assert found.observe("frame", "test") is online and state(trainer) == before
    with pytest.raises(Mistake, match="the targets of level 'moment' are its own states"):
        found.observe("moment", "test", "target")


def test_a_level_that_reads_two_streams_says_how_another_encoder_reads_them(tmp_path: Path) -> None:
    level = {
        "name": "content",
        "reads": ["view", "other_view"],
        "encoder": {"name": "conv", "width": 8, "base": 4, "stages": 2},
        "energy": "l2",
        "prevention": ["ema"],
    }
    data = {"digits": {"name": "digits", "size": 16, "batch": 4, "samples": 40, "held_out": 20}}
    plan = {**SMALL, "data": data, "levels": {"content": level}, "evaluate": {"samples": 12, "batch": 8}}
    found = bench(trainings.opened(tmp_path / "run", plan))
    one, other = (found.observe("content", "test", features).states.tokens for features in ("online", "target"))
    assert torch.equal(one, other)  # a teacher begins as a copy


def test_a_probe_of_target_features_is_part_of_a_study(tmp_path: Path) -> None:
    where = {"name": "regression", "level": "frame", "target": "position"}
    probes = {features: {**where, "features": features} for features in ("online", "target")}
    trainer = trainings.opened(tmp_path / "run", changed(FULL, ("probes", probes)))
    before, _ = trainer.probed(None)
    assert before["probe/target/r2"] == before["probe/online/r2"]  # a teacher begins as a copy
    for step, batches in train.loading.batches(trainer.sources, range(2), 0, trainer.device):
        trainer.step(step, batches)
    after, _ = trainer.probed(None)
    assert len({before["probe/target/r2"], after["probe/target/r2"], after["probe/online/r2"]}) == 3


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_level_that_can_draws_held_out_samples_in_evaluation_mode(
    trainer: train.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradient, and nothing of it is changed; levels of a kind without `draw` are not asked, nor is any for one probe."""
    assert len(trainer.probed(None)[1]) == 1  # the probe
    seen: list[Here] = []

    def draw(level: Forecast, here: Here, figure: Figure) -> None:
        assert not any(part.training for part in trainer.stack.modules())
        assert not torch.is_grad_enabled() and not here.states.tokens.requires_grad
        seen.append(here)
        if here.states.steps > 4:
            figure.subplots(2, 3)

    monkeypatch.setattr(Forecast, "draw", draw, raising=False)
    trainer.stack.train()
    before, modes = state(trainer), [part.training for part in trainer.stack.modules()]
    pictures, figures = trainer.probed(None)[1][1:], [Figure(), Figure()]
    assert not seen  # not before somebody wants to see it
    for picture, figure in zip(pictures, figures, strict=True):
        picture(figure)
    assert state(trainer) == before and [part.training for part in trainer.stack.modules()] == modes
    frame, moment = figures
    assert len(frame.axes) == 6 and frame.get_suptitle() == "frame, on held-out samples"
    assert not moment.axes and not moment.get_suptitle()
    for here, level in zip(seen, ("frame", "moment"), strict=True):
        expected = bench(trainer).observe(level, "test").states.tokens
        torch.testing.assert_close(here.states.tokens, expected[: trainer.study.evaluate.batch])
    assert len(trainer.probed("where")[1]) == 1


@pytest.mark.parametrize("who", [Regression, Forecast])
def test_an_error_in_drawing_is_the_same_whoever_draws(
    trainer: train.Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: type
) -> None:
    """It is not swallowed, and leaves the stack as it was."""

    def draw(self: object, *seen: object) -> None:
        raise RuntimeError("out of ink")

    monkeypatch.setattr(who, "draw", draw, raising=False)
    trainer.stack.train()
    with pytest.raises(RuntimeError, match="out of ink"):
        summary(tmp_path / "summary.png", [], {}, {}, trainer.probed(None)[1])
    assert trainer.stack.training and trainer.stack.levels["frame"].training and torch.is_grad_enabled()


# --- beside the stack before training ---------------------------------------------------------------------------------


def test_untrained_means_the_weights_at_the_start(tmp_path: Path) -> None:
    trainer = trainings.opened(tmp_path / "run", FULL)
    before, _ = trainer.probed(None)
    assert before["probe/where/r2"] == before["probe/where/untrained_r2"]
    for step, batches in train.loading.batches(trainer.sources, range(3), 0, trainer.device):
        trainer.step(step, batches)
    after, _ = trainer.probed(None)
    assert after["probe/where/untrained_r2"] == before["probe/where/r2"]
    assert after["probe/where/r2"] != before["probe/where/r2"]


def test_weights_of_another_run_are_there_before_training(tmp_path: Path) -> None:
    """So a level that stays as it is, is what it was; where that run is gone, nothing is said of the time before."""
    probed = FULL | {"probes": {"where": {"name": "regression", "level": "frame", "target": "position"}}}
    trainings.trained(tmp_path / "first", probed)
    kept = {"weights": str(tmp_path / "first"), "frozen": True}
    raw = probed | {"levels": {**FULL["levels"], "frame": {**FULL["levels"]["frame"], **kept}}}
    found = trainings.trained(tmp_path / "second", raw).metrics
    assert found["probe/where/r2"] == found["probe/where/untrained_r2"]
    assert found["probe/where/r2"] != trainings.opened(tmp_path / "third", probed).probed(None)[0]["probe/where/r2"]
    trainer = trainings.opened(tmp_path / "fourth", raw)
    (tmp_path / "first").rename(tmp_path / "moved")
    assert "probe/where/untrained_r2" not in trainer.probed(None)[0]


def test_of_what_several_predictors_foresee_their_doubt_is_told_too(tmp_path: Path) -> None:
    raw = changed(FULL, ("levels.frame.predictor", {"name": "ensemble", "members": [PREDICTOR, PREDICTOR]}))
    next_ = {"name": "regression", "level": "frame", "target": "position", "ahead": 1}
    scores = trainings.opened(tmp_path / "run", raw | {"probes": {"next": next_}}).probed(None)[0]
    assert scores["probe/next/doubt"] > 0


# --- what probes cannot do --------------------------------------------------------------------------------------------

NEVER_MEETS = {"name": "regression", "level": "late", "target": "position", "ahead": 1, "against": ["moment"]}
UNKNOWN = {"name": "regression", "level": "frame", "target": "positions"}


@pytest.mark.parametrize(
    ("probe", "words"),
    [(NEVER_MEETS, r"^probes\.odd: moment .*never meets"), (UNKNOWN, r"^probes\.odd: .*no 'positions'.*mean 'position'")],
)
def test_a_probe_that_cannot_measure_is_one_message_with_its_path(tmp_path: Path, probe: dict[str, object], words: str) -> None:
    """And nothing is lost: with another probe the run goes on from its last step."""
    late = {**SMALL["levels"]["moment"], "reads": "frame", "window": 3}
    wrong = changed(SMALL, ("train.steps", 2), ("levels.late", late), ("probes.odd", probe))
    with pytest.raises(Mistake, match=words):
        trainings.trained(tmp_path / "run", wrong)
    assert left(tmp_path / "run").step == 2
    right = changed(wrong, ("probes", {"odd": {**UNKNOWN, "target": "position"}}))
    assert "probe/odd/r2" in trainings.trained(tmp_path / "run", right, resume=True).metrics


def test_an_empty_split_is_a_mistake(trainer: train.Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trainer.sources["video"].dataset.lengths, "test", 0)
    with pytest.raises(Mistake, match=r"^probes\.where: data\.video: its split 'test' is empty"):
        trainer.probed(None)


# --- a run that is evaluated ------------------------------------------------------------------------------------------


def test_evaluating_a_run_says_what_its_end_said_and_leaves_it_alone(tmp_path: Path) -> None:
    result = trainings.trained(tmp_path / "run", FULL)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    run = runs.find(str(tmp_path / "run"))
    plan = trainings.parsed(run.resolved())
    again = train.evaluate_run(plan, run, trainings.installed(), None, print, lambda result: None)
    assert again.metrics == result.metrics
    assert again.verdicts == result.verdicts
    assert again.step == trainings.STEPS
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    with pytest.raises(Mistake, match="no probe 'wher', did you mean 'where'"):
        train.evaluate_run(plan, run, trainings.installed(), "wher", print, lambda result: None)


def test_what_draws_at_random_is_shown_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Components of strangers may draw from torch's own generator, in evaluation mode too."""
    forward = trainings.Normed.forward

    def noisy(self: trainings.Normed, below: States, layers: tuple[str, ...] = ()) -> Features:
        features = forward(self, below)
        return replace(features, tokens=features.tokens + 0.1 * torch.randn_like(features.tokens))

    monkeypatch.setattr(trainings.Normed, "forward", noisy)
    result = trainings.trained(tmp_path / "run", FULL)
    torch.rand(7)
    run = runs.find(str(tmp_path / "run"))
    again = train.evaluate_run(trainings.parsed(FULL), run, trainings.installed(), None, print, lambda result: None)
    assert again.metrics == result.metrics
    trainer = trainings.opened(tmp_path / "other", FULL)
    scores = trainer.probed(None)[0]
    torch.rand(7)
    assert trainer.probed(None)[0] == scores


def test_one_probe_alone(tmp_path: Path) -> None:
    raw = changed(FULL, ("probes.what", {"name": "regression", "level": "frame", "target": "velocity"}))
    plan = trainings.parsed(raw)
    assert evaluate.probes(plan, "what").keys() == {"what"}
    assert evaluate.probes(plan).keys() == {"where", "what"}
