"""Every level is watched on the same held-out samples, and what is planted is seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import trainings
from torch import nn
from trainings import FULL, SMALL, changed, digests, left

from hjepa import collapse, journal, train


def state(trainer: train.Trainer) -> dict[str, str]:
    return digests(trainer.state()[0])


@pytest.fixture
def trainer(tmp_path: Path) -> train.Trainer:
    made = trainings.opened(tmp_path / "run", SMALL)
    made._look()
    return made


# --- looking changes nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, False])
def test_a_look_changes_nothing(tmp_path: Path, mode: bool) -> None:
    """Neither weights, nor the statistics of batch norm, nor a queue, nor the mode; and looking again shows the same."""
    trainer = trainings.opened(tmp_path / "run", FULL)
    trainer.stack.train(mode)
    modes, before = {name: part.training for name, part in trainer.stack.named_modules()}, state(trainer)
    first = trainer.monitor.look(0, settled=False)
    assert state(trainer) == before
    assert {name: part.training for name, part in trainer.stack.named_modules()} == modes
    torch.rand(3)
    assert trainer.monitor.look(0, settled=False) == first
    assert all(parameter.grad is None for parameter in trainer.parameters)


def test_looking_more_often_does_not_change_the_training(tmp_path: Path) -> None:
    for name, every in (("often", 1), ("seldom", 100)):
        trainings.trained(tmp_path / name, changed(FULL, ("train.diagnose_every", every), ("train.steps", 4)))
    assert left(tmp_path / "often").digests == left(tmp_path / "seldom").digests


def test_always_the_same_samples_of_another_split(trainer: train.Trainer) -> None:
    (batch,) = trainer.monitor.batches.values()
    source = trainer.sources["video"]
    assert batch["ids"].tolist() == list(range(len(source.dataset.split("valid"))))
    assert torch.equal(batch["frames"], source.dataset.split("valid").batch(batch["ids"], trainer.device)["frames"])


def test_a_frozen_level_is_not_judged(tmp_path: Path) -> None:
    trainer = trainings.opened(tmp_path / "run", changed(SMALL, ("levels.frame.frozen", True)))
    assert trainer.monitor.look(0, settled=False).verdicts.keys() == {"moment"}


# --- what is planted is seen ------------------------------------------------------------------------------------------


def encoder(trainer: train.Trainer) -> nn.Linear:
    found = trainer.stack.levels["frame"].encoder.out
    assert isinstance(found, nn.Linear)
    return found


def dead(trainer: train.Trainer) -> None:
    encoder(trainer).weight.zero_()


def shrunk(trainer: train.Trainer) -> None:
    """What is left differs by a 300th of what it did, beside a bias as large as ever."""
    encoder(trainer).weight.div_(300)
    encoder(trainer).bias.fill_(1.0)


def one_direction(trainer: train.Trainer) -> None:
    encoder(trainer).weight[1:] = 0


def copying(trainer: train.Trainer) -> None:
    """The prediction is the last state."""
    for parameter in trainer.stack.levels["frame"].predictor.out.parameters():
        parameter.zero_()


def exploded(trainer: train.Trainer) -> None:
    encoder(trainer).weight[0, 0] = math.inf


PLANTED: dict[str, Callable[[train.Trainer], None]] = {
    "complete collapse": dead,
    "complete collapse (": shrunk,
    "dimensional collapse": one_direction,
    "shortcut": copying,
    "diverged": exploded,
}


@pytest.mark.parametrize("words", PLANTED)
def test_what_is_planted_in_a_stack_is_named(trainer: train.Trainer, words: str) -> None:
    assert trainer.look.verdicts["frame"] == "healthy"
    with torch.no_grad():
        PLANTED[words](trainer)
    look = trainer.monitor.look(5, settled=True)
    assert look.verdicts["frame"].startswith(words)


def fade(trainer: train.Trainer) -> None:
    """An eighth is left of its spread, and a third of what is left of its scale."""
    with torch.no_grad():
        encoder(trainer).weight.mul_(0.125)
        spread = trainer.look.metrics["collapse/frame/std"] * 0.125
        encoder(trainer).bias.fill_(4 * spread)


@pytest.mark.parametrize(("prevention", "alive"), [([], False), (["vicreg"], True), (["stop_gradient"], True)])
def test_a_fading_level_is_dead_where_nothing_keeps_it_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prevention: list[str], alive: bool
) -> None:
    """Whatever its energy says. Targets without gradient may keep it: no single step shows what they do."""
    monkeypatch.setattr(collapse, "MEANT", 0.0)
    trainer = trainings.opened(tmp_path / "run", changed(SMALL, ("levels.frame.prevention", prevention)))
    trainer._look()
    fade(trainer)
    look = trainer.monitor.look(5, settled=True)
    words = look.verdicts["frame"]
    assert look.metrics["collapse/frame/std_ratio"] == pytest.approx(0.125, rel=0.1)
    assert not words.startswith("complete collapse") if alive else words.startswith("complete collapse (std at 12")
    assert trainer.monitor.look(5, settled=False).verdicts["frame"] == "healthy"


def test_before_training_has_had_time_a_copy_is_no_finding(trainer: train.Trainer) -> None:
    with torch.no_grad():
        copying(trainer)
    assert trainer.monitor.look(0, settled=False).verdicts["frame"] == "healthy"
    assert trainer.monitor.look(0, settled=True).verdicts["frame"].startswith("shortcut")


def test_spread_is_measured_against_the_first_look(trainer: train.Trainer) -> None:
    first = trainer.look.metrics
    with torch.no_grad():
        encoder(trainer).weight.div_(2)
        encoder(trainer).bias.div_(2)
    second, third = (trainer.monitor.look(step, settled=False).metrics for step in (1, 2))
    assert second["collapse/frame/std"] == pytest.approx(first["collapse/frame/std"] / 2, rel=1e-5)
    assert second["collapse/frame/std_ratio"] == pytest.approx(0.5, rel=1e-5)
    assert second == third


def test_without_prevention_it_collapses_in_the_first_third_and_the_journal_says_when(tmp_path: Path) -> None:
    """At both levels. With prevention, the same training does not."""
    raw = changed(
        SMALL,
        ("train", {**SMALL["train"], "steps": 60, "diagnose_every": 10, "checkpoint_every": 100}),
        ("train.optimizer", {"name": "sgd", "lr": 1.0, "momentum": 0.9}),
        ("data.video.batch", 8),
    )
    bare = changed(raw, ("levels.frame.prevention", []), ("levels.moment.prevention", []))
    for level in ("frame", "moment"):
        step, words = next(
            (line["step"], line["verdicts"][level])
            for line in events(tmp_path / "bare", bare)
            if line["verdicts"][level].startswith("complete collapse")
        )
        assert step <= 20, words
    kept = changed(raw, ("train.optimizer", {"name": "adamw", "lr": 0.01}), ("train.steps", 20))
    assert not any("complete" in words for line in events(tmp_path / "kept", kept) for words in line["verdicts"].values())


def events(folder: Path, raw: dict[str, Any]) -> list[dict[str, Any]]:
    """The verdicts of a training: at its start, at its end, and whenever one changes."""
    if not folder.exists():
        trainings.trained(folder, raw)
    found = [line for line in journal.read(folder / "journal.jsonl") if line.get("event") == "verdicts"]
    assert (found[0]["step"], found[-1]["step"]) == (0, raw["train"]["steps"])
    assert all(one["verdicts"] != other["verdicts"] for one, other in pairwise(found[:-1]))
    assert all(line["spectra"].keys() == line["verdicts"].keys() for line in found)
    return found
