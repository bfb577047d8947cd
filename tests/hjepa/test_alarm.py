"""Why a level collapsed: each cause from the facts that make it, and from trainings in which it was planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainings
from trainings import SMALL, changed

from hjepa import checkpoint, journal
from hjepa.alarm import Facts, raised, sounded
from hjepa.effects import Effect

PULL = {"frame/prediction": Effect(-1.0, -1.0)}
DEAD = Facts("complete collapse (...)", 0.01, 1.0, {}, PULL)
LINE = replace(DEAD, verdict="dimensional collapse (...)")
FLAT = replace(DEAD, verdict="energy collapse (...)")


def with_term(facts: Facts, spread: float, directions: float = 0.0, name: str = "frame/vicreg.std") -> Facts:
    return replace(facts, effects={**PULL, name: Effect(spread, directions)}, own=(name,))


CAUSES = {
    "diverged": replace(DEAD, verdict="diverged (std is nan)", reads={"patch": "complete collapse (...)"}),
    "below": replace(DEAD, reads={"patch": "dimensional collapse (...)", "other": "healthy"}, varies=0.001),
    "input": replace(DEAD, varies=0.001),
    "unprotected": DEAD,
    "targets": replace(DEAD, giving="ema"),
    "helpless": with_term(DEAD, -0.2),
    "weak": with_term(DEAD, 0.4),
    "stuck": with_term(DEAD, 40.0),
    "one_direction": with_term(LINE, 2.0),
    "latent": replace(FLAT, latent=True),
    "blind": FLAT,
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_told_from_the_facts(cause: str) -> None:
    alarm = raised("frame", CAUSES[cause])
    assert alarm.cause == cause
    assert alarm.words and alarm.level in str(alarm) and alarm.verdict in str(alarm)


def test_words_name_what_acts_and_how_strongly() -> None:
    weak = raised("frame", with_term(DEAD, 0.4)).words
    assert "frame/vicreg.std keeps it apart with 0.4 times the strength of frame/prediction" in weak
    assert "weight is too small" in weak
    assert raised("frame", with_term(LINE, 1.0, 0.2)).cause == "weak"
    assert "ema" in raised("frame", CAUSES["targets"]).words
    assert "patch" in raised("frame", CAUSES["below"]).words and "other" not in raised("frame", CAUSES["below"]).words


def test_a_term_of_its_own_that_is_much_too_weak_is_called_weak() -> None:
    assert raised("frame", with_term(DEAD, 1e-6)).cause == "weak"
    assert raised("frame", replace(with_term(DEAD, 1e-6), own=())).cause == "unprotected"


def test_a_gradient_from_above_counts_as_what_keeps_a_level_apart() -> None:
    held = replace(DEAD, effects={**PULL, "moment/sigreg.normal": Effect(0.5, 0.1)})
    assert raised("frame", held).cause == "weak"
    assert "moment/sigreg.normal" in raised("frame", held).words


def test_a_falling_loss_is_named_as_no_evidence() -> None:
    assert "no evidence of learning" in raised("frame", DEAD).words
    assert "loss" not in raised("frame", replace(DEAD, energy_left=0.9)).words


def test_an_alarm_sounds_once_when_a_level_collapses() -> None:
    dead, gone = "complete collapse (...)", "diverged (std is nan)"
    assert sounded({}, {"a": dead, "b": "healthy"}) == ["a"]
    assert sounded({"a": "healthy", "b": "shortcut (...)"}, {"a": gone, "b": "energy collapse (...)"}) == ["a", "b"]
    assert sounded({"a": dead}, {"a": dead, "b": "shortcut (...)", "c": "undecided (...)"}) == []
    assert sounded({"a": dead}, {"a": gone}) == ["a"]


def test_a_level_at_the_edge_of_a_verdict_sounds_once(tmp_path: Path) -> None:
    monitor = trainings.opened(tmp_path / "run", SMALL).monitor
    look = monitor.look(0, settled=False)
    dead = replace(look, verdicts={**look.verdicts, "frame": "complete collapse (std at 0.5 % ...)"})
    dying = replace(look, verdicts={**look.verdicts, "frame": "complete collapse (std at 0.4 % ...)"})
    line = replace(look, verdicts={**look.verdicts, "frame": "dimensional collapse (...)"})
    sounds = [len(monitor.alarms(now, look.verdicts, 0)) for now in (dead, look, dying, line, dead)]
    assert sounds == [1, 0, 0, 1, 0]


# --- in trainings -----------------------------------------------------------------------------------------------------

BARE = changed(
    SMALL,
    ("train", {**SMALL["train"], "steps": 60, "diagnose_every": 5, "checkpoint_every": 10}),
    ("train.optimizer", {"name": "sgd", "lr": 1.0, "momentum": 0.9}),
    ("levels.frame.prevention", []),
    ("levels.moment.prevention", []),
    ("data.video.batch", 8),
)


def alarms(folder: Path) -> list[dict[str, Any]]:
    return [line for line in journal.read(folder / "journal.jsonl") if line.get("event") == "alarm"]


def test_a_training_without_prevention_says_so_and_keeps_the_last_healthy_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    result = trainings.trained(tmp_path / "run", BARE, say=said.append)
    first = alarms(tmp_path / "run")[0]
    assert first["cause"] in ("unprotected", "below") and result.outcome == "done"
    assert any(first["words"] in message and first["healthy"] in message for message in said)
    kept = checkpoint.load(tmp_path / "run" / "checkpoints" / first["healthy"])
    assert kept.step < first["step"] <= kept.step + 10
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 3  # two, and the healthy one


def test_a_study_can_ask_to_stop(tmp_path: Path) -> None:
    result = trainings.trained(tmp_path / "run", changed(BARE, ("train.alarm", "stop")))
    (alarm,) = {line["step"]: line for line in alarms(tmp_path / "run")}.values()
    assert (result.outcome, result.step) == ("collapsed", (alarm["step"] - 1) // 10 * 10)
    assert [
        line["outcome"] for line in journal.read(tmp_path / "run" / "journal.jsonl") if line.get("event") == "finished"
    ] == ["collapsed"]


@pytest.mark.parametrize("then", ["warn", "stop"])
def test_identical_inputs_are_named_before_the_first_step(then: str, tmp_path: Path) -> None:
    """Of all levels, also where the first alarm ends the training."""
    frame = np.random.default_rng(0).random((1, 1, 1, 16, 16), dtype=np.float32)
    np.save(tmp_path / "same.npy", np.broadcast_to(frame, (40, 8, 1, 16, 16)))
    source = {"name": "arrays", "path": str(tmp_path / "same.npy"), "main": "frames", "batch": 4}
    trainings.trained(tmp_path / "run", changed(SMALL, ("data.video", source), ("train.steps", 2), ("train.alarm", then)))
    found = {(line["step"], line["level"]): line["cause"] for line in alarms(tmp_path / "run")}
    assert found == {(0, "frame"): "input", (0, "moment"): "below"}


def test_a_healthy_training_sounds_no_alarm(tmp_path: Path) -> None:
    trainings.trained(tmp_path / "run", changed(SMALL, ("train.steps", 20), ("train.diagnose_every", 2)))
    assert alarms(tmp_path / "run") == []
