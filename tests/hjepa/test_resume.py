"""A training that is killed at any moment and resumed ends as one that was left alone: bit for bit, and in its record."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainings
import yaml
from torch import Tensor
from trainings import FULL, STEPS, Forks, Left, assert_same, changed, left

from hjepa import checkpoint, journal, loading, optimizers, train
from hjepa.checkpoint import Checkpoint
from hjepa.errors import Mistake
from hjepa_data.moving_digits import MovingDigits

KILLS = int(os.environ.get("HJEPA_KILLS", "1"))
"""Of every combination of a source and its readers."""


# --- killed -----------------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """Where a study lies, and what is left of it when nobody interrupts it."""

    path: Path
    left: Left
    calls: dict[str, int]
    seconds: float

    def argv(self, name: str, *overrides: str) -> list[str]:
        """Of a training in the run folder `name`: the first one, or one that goes on."""
        resume = ["--resume"] if (self.path / name / "resolved.yaml").exists() else []
        return ["train", "study.yaml", "--out", name, *resume, *overrides]


def arrays_file(path: Path) -> None:
    """Frames on the disk, as bytes, with the positions of what they show."""
    options = {key: value for key, value in trainings.DIGITS.items() if key != "name"}
    batch = MovingDigits(0, **options).batch(torch.arange(30), torch.device("cpu"))
    frames = (batch["frames"] * 255).round().to(torch.uint8)
    np.savez(path, frames=frames.numpy(), position=batch["position"].numpy())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Callable[[str], Place]:
    made: dict[str, Place] = {}

    def place(source: str) -> Place:
        if source not in made:
            path, raw = tmp_path_factory.mktemp(source), FULL
            if source == "arrays":
                arrays_file(path / "video.npz")
                source_on_disk = {"name": "arrays", "path": "video.npz", "batch": 4, "valid": 0.2, "test": 0.2}
                raw = changed(FULL, ("data.video", source_on_disk))
            (path / "study.yaml").write_text(yaml.safe_dump(raw))
            ended = forks(path, "train", "study.yaml", "--out", "whole")
            assert ended.code == 0, ended.said
            made[source] = Place(path, left(path / "whole"), ended.calls, ended.seconds)
            assert made[source].left.step == STEPS
        return made[source]

    return place


def test_the_same_seed_trains_the_same(places: Callable[[str], Place], forks: Forks) -> None:
    place = places("moving_digits")
    assert forks(place.path, *place.argv("again")).code == 0
    assert_same(left(place.path / "again"), place.left)
    assert left(place.path / "again").events == place.left.events


@pytest.mark.parametrize("workers", ["0", "1", "2", "changing"])
@pytest.mark.parametrize("source", ["moving_digits", "arrays"])
def test_killed_at_random_moments(places: Callable[[str], Place], forks: Forks, source: str, workers: str) -> None:
    """P43, P48. At a random time, or at a random call that changes something on the disk, which a write has half done.

    HJEPA_KILLS=20 does so many for each source and number of workers; with -rP it says where they were.
    """
    place, chance = places(source), random.Random(f"{source} {workers}")
    moments: list[str] = []
    while len(moments) < KILLS:
        name, most = f"{workers}-{len(moments)}", min(KILLS, len(moments) + 3)
        while True:
            count = chance.choice("012") if workers == "changing" else workers
            kind = chance.choice([name for name in place.calls if place.calls[name]])
            moment = {"call": chance.randint(1, place.calls[kind]), "of": kind}
            trouble = chance.choice([moment, {"after": chance.uniform(0, place.seconds)}]) if len(moments) < most else {}
            ended = forks(place.path, *place.argv(name, f"train.workers={count}"), **trouble)
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, (trouble, ended.said)
            assert not ended.behind
            moments.append(ended.within or "at a random time")
        assert_same(left(place.path / name), place.left)
        shutil.rmtree(place.path / name)
    print(f"killed at {', '.join(moments)}")


def real(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same with what is shipped alone."""
    return changed(
        raw, ("levels.frame.prevention", ["ema"]), ("levels.moment.encoder", {"name": "latent_mlp", "width": 8, "hidden": 8})
    )


def test_the_command_itself_is_killed_and_goes_on(tmp_path: Path, forks: Forks) -> None:
    """In a process of its own, as a person starts it."""
    raw = changed(real(FULL), ("train.steps", 20))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    command = [str(Path(sys.executable).with_name("hjepa")), "train", "study.yaml", "--out", "run", "train.workers=1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    file = tmp_path / "run" / "journal.jsonl"
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b'"n":') > 7):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()  # type: ignore[union-attr]
    assert forks(tmp_path, "train", "study.yaml", "--out", "run", "--resume").code == 0
    assert forks(tmp_path, "train", "study.yaml", "--out", "whole").code == 0
    assert_same(left(tmp_path / "run"), left(tmp_path / "whole"))


@pytest.mark.parametrize("call", [2, 9, 25])
def test_killed_before_the_first_checkpoint(places: Callable[[str], Place], forks: Forks, call: int) -> None:
    """Nothing is lost then, and it is said where nothing can be resumed."""
    place, name = places("moving_digits"), f"early-{call}"
    ended = forks(place.path, *place.argv(name), call=call)
    assert ended.code == -signal.SIGKILL
    again = forks(place.path, *place.argv(name))
    assert again.code == 0, again.said
    assert_same(left(place.path / name), place.left)


# --- stopped by a signal ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_exits_3(
    places: Callable[[str], Place], forks: Forks, number: signal.Signals, workers: int
) -> None:
    """Sent to the workers as well, as a terminal and a scheduler do."""
    place, name = places("moving_digits"), f"{number.name}-{workers}"
    ended = forks(place.path, *place.argv(name, f"train.workers={workers}"), step=4, signal=number, group=True)
    assert ended.code == 3, ended.said
    assert "stopped after step 5; go on with --resume" in ended.said[0]
    assert left(place.path / name).step == 5
    assert left(place.path / name).events[-1] == ("finished", 5)
    assert outcome(place.path / name) == "stopped"
    assert forks(place.path, *place.argv(name)).code == 0
    assert_same(left(place.path / name), place.left)


def test_a_second_signal_acts_at_once(places: Callable[[str], Place], forks: Forks) -> None:
    """In the middle of a step: what counts is the checkpoint before it."""
    place = places("moving_digits")
    ended = forks(place.path, *place.argv("twice"), step=4, signal=signal.SIGINT, times=2)
    assert ended.code == 3, ended.said
    assert "stopped after step 3" in ended.said[0]
    assert left(place.path / "twice").step == 3
    assert forks(place.path, *place.argv("twice")).code == 0
    assert_same(left(place.path / "twice"), place.left)


def test_a_signal_while_probes_are_measured(places: Callable[[str], Place], forks: Forks) -> None:
    place = places("moving_digits")
    ended = forks(place.path, *place.argv("probing"), step="probes", signal=signal.SIGTERM)
    assert ended.code == 3, ended.said
    assert f"stopped after step {STEPS}" in ended.said[0]
    assert forks(place.path, *place.argv("probing")).code == 0
    assert_same(left(place.path / "probing"), place.left)


def test_a_signal_within_the_last_step_comes_too_late(places: Callable[[str], Place], forks: Forks) -> None:
    place = places("moving_digits")
    assert forks(place.path, *place.argv("late"), step=STEPS - 1, signal=signal.SIGTERM).code == 0
    assert_same(left(place.path / "late"), place.left)


def outcome(folder: Path) -> str:
    return [line["outcome"] for line in journal.read(folder / "journal.jsonl") if line.get("event") == "finished"][-1]


# --- what a checkpoint holds ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, places: Callable[[str], Place], forks: Forks) -> Path:
    """A run that was stopped after step 5, with the checkpoint before it."""
    place = places("moving_digits")
    assert forks(place.path, *place.argv("stopped"), step=4, signal=signal.SIGTERM).code == 3
    return place.path / "stopped"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What would stand in the checkpoint had nothing been trained; a moment that was never taken is zero."""
    return trainings.opened(tmp_path_factory.mktemp("fresh") / "run", FULL).state()[0]


@pytest.fixture(scope="module")
def gone_on(stopped: Path, fresh: dict[str, Tensor]) -> Left:
    """The run as it goes on from its own checkpoint."""
    copy = shutil.copytree(stopped, stopped.with_name("gone-on"))
    trainings.trained(copy, FULL, resume=True)
    return left(copy)


def other_verdicts(stopped: Path) -> dict[str, str]:
    """So that the first look after the run goes on, at step 6, has something to tell where it had nothing, or the other way round."""
    lines = journal.read(stopped.with_name("gone-on") / "journal.jsonl")
    told = [line["verdicts"] for line in lines if line.get("event") == "verdicts" and line["step"] == 6]
    return told[0] if told else dict.fromkeys(("frame", "moment"), "undecided")


Change = Callable[[Checkpoint, dict[str, Tensor]], Checkpoint]


def forgotten(*parts: str) -> Change:
    """All tensors of whose names these are parts, as they would be had nothing been trained."""

    def change(saved: Checkpoint, fresh: dict[str, Tensor]) -> Checkpoint:
        names = [name for name in saved.tensors if all(part in name for part in parts)]
        assert names, parts
        return replace(saved, tensors=saved.tensors | {name: unlearned(name, saved, fresh) for name in names})

    return change


def unlearned(name: str, saved: Checkpoint, fresh: dict[str, Tensor]) -> Tensor:
    return fresh[name] if name in fresh else torch.zeros_like(saved.tensors[name])


def other_fact(name: str, value: Any) -> Change:
    return lambda saved, fresh: replace(saved, facts=saved.facts | {name: value})


def one_parameter_less(saved: Checkpoint, fresh: dict[str, Tensor]) -> Checkpoint:
    """An optimizer that knows nothing of one parameter makes its state anew."""
    return replace(saved, facts=saved.facts | {"optimizer": dict(list(saved.facts["optimizer"].items())[1:])})


TENSORS: dict[str, tuple[str, ...]] = {
    "encoder": ("model/levels.frame.encoder.",),
    "predictor": ("model/levels.frame.predictor.",),
    "upper encoder": ("model/levels.moment.encoder.out.",),
    "upper predictor": ("model/levels.moment.predictor.",),
    "projector": ("model/", "vicreg.projector."),
    "teacher": ("model/", ".teacher."),
    "batch norm: weights": ("model/", ".norm.weight"),
    "batch norm: biases": ("model/", ".norm.bias"),
    "batch norm: means": ("running_mean",),
    "batch norm: variances": ("running_var",),
    "batch norm: count": ("num_batches_tracked",),
    "queue: rows": ("queue.rows",),
    "queue: place": ("queue.place",),
    "optimizer: first moments": ("optimizer/", "/exp_avg"),
    "optimizer: second moments": ("optimizer/", "/exp_avg_sq"),
    "optimizer: step counts": ("optimizer/", "/step"),
}
FACTS: dict[str, Any] = {"optimizer": {}, "initial": {}, "verdicts": {}, "records": 3}
ITEMS: dict[str, Change] = {
    **{item: forgotten(*parts) for item, parts in TENSORS.items()},
    **{f"fact: {name}": other_fact(name, value) for name, value in FACTS.items()},
    "optimizer: one parameter": one_parameter_less,
    "step": lambda saved, fresh: replace(saved, step=4),
}


def resumed_from(folder: Path, change: Callable[[Checkpoint], Checkpoint]) -> Left:
    """What is left of a run that goes on from another checkpoint than it saved."""
    saved = checkpoint.newest(folder / "checkpoints", lambda message: None)
    shutil.rmtree(folder / "checkpoints")
    other = change(saved)
    checkpoint.save(folder / "checkpoints", other.step, other.tensors, other.facts)
    trainings.trained(folder, FULL, resume=True)
    return left(folder)


def test_from_its_own_checkpoint_it_goes_on_as_if_nothing_had_happened(gone_on: Left, places: Callable[[str], Place]) -> None:
    whole = places("moving_digits").left
    assert_same(gone_on, whole)
    verdicts, others = ([event for event in left.events if event[0] == "verdicts"] for left in (gone_on, whole))
    assert verdicts == others


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_counts(stopped: Path, tmp_path: Path, fresh: dict[str, Tensor], gone_on: Left, item: str) -> None:
    """Without any one of them the training, or its record, is another one."""
    copy = shutil.copytree(stopped, tmp_path / "run")
    change = other_fact("verdicts", other_verdicts(stopped)) if item == "fact: verdicts" else ITEMS[item]
    other = resumed_from(copy, lambda saved: change(saved, fresh))
    if item == "fact: verdicts":
        assert other.events != gone_on.events
    elif item in ("fact: initial", "fact: records"):
        assert other.records != gone_on.records
    else:
        assert other.digests != gone_on.digests
        assert other.digests["weights"] != gone_on.digests["weights"] or item == "teacher"


def test_nothing_else_is_kept(stopped: Path, fresh: dict[str, Tensor]) -> None:
    """Every tensor belongs to an item, and none has the value that it would have anyway."""
    saved = checkpoint.newest(stopped / "checkpoints", lambda message: None)
    assert set(saved.facts) == set(FACTS)
    for name, tensor in saved.tensors.items():
        assert any(all(part in name for part in parts) for parts in TENSORS.values()), name
        assert not torch.equal(tensor, unlearned(name, saved, fresh)), f"{name} needs not be kept"


@pytest.mark.parametrize("item", [*TENSORS, *(f"fact: {name}" for name in FACTS)])
def test_what_is_missing_is_refused_by_name(stopped: Path, tmp_path: Path, item: str) -> None:
    copy = shutil.copytree(stopped, tmp_path / "run")
    before = (copy / "journal.jsonl").read_bytes()

    def change(saved: Checkpoint) -> Checkpoint:
        if item not in TENSORS:
            return replace(saved, facts={name: value for name, value in saved.facts.items() if f"fact: {name}" != item})
        missing = next(name for name in saved.tensors if all(part in name for part in TENSORS[item]))
        return replace(saved, tensors={name: tensor for name, tensor in saved.tensors.items() if name != missing})

    with pytest.raises(Mistake, match=r"step-00000005.* (missing: |does not hold )"):
        resumed_from(copy, change)
    assert (copy / "journal.jsonl").read_bytes() == before


OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adam": {"amsgrad": True},
    "rmsprop": {"momentum": 0.9, "centered": True},
}


@pytest.mark.parametrize("name", sorted(set(optimizers.available()) - {"muon"}))
def test_every_optimizer_goes_on(tmp_path: Path, name: str) -> None:
    """Whatever it keeps. (Muon takes matrices alone.)"""
    raw = changed(
        {**FULL, "levels": {"frame": FULL["levels"]["frame"]}, "probes": {}},
        ("train.optimizer", {"name": name, "lr": 0.01, **OPTIONS.get(name, {})}),
    )
    whole = trainings.opened(tmp_path / "whole", raw)
    assert not optimizers.problems(whole.study)
    steps(whole, range(3))
    saved = Checkpoint(3, tmp_path, *stored(tmp_path, whole))
    steps(whole, range(3, 6))
    again = trainings.opened(tmp_path / "again", raw)
    again.restore(saved)
    steps(again, range(3, 6))
    assert trainings.digests(again.state()[0]) == trainings.digests(whole.state()[0])
    assert saved.tensors.keys() >= {key for key in whole.state()[0] if key.startswith("optimizer/")}


def stored(folder: Path, trainer: train.Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, facts = trainer.state()
    back = checkpoint.load(checkpoint.save(folder / "checkpoints", trainer.done, tensors, {**facts, "records": 0}))
    return back.tensors, back.facts


def steps(trainer: train.Trainer, which: range) -> None:
    for step, batches in loading.batches(trainer.sources, which, 0, trainer.device):
        trainer.step(step, batches)


# --- damaged ----------------------------------------------------------------------------------------------------------


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "truncated"),
    "flipped": (flipped, "sha256 differs"),
    "missing": (Path.unlink, "missing"),
}


DAMAGED = [*((damage, "tensors.safetensors") for damage in DAMAGES), ("flipped", "facts.json"), ("missing", "manifest.json")]


@pytest.mark.parametrize(("damage", "file"), DAMAGED)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    stopped: Path, tmp_path: Path, places: Callable[[str], Place], damage: str, file: str
) -> None:
    copy, said = shutil.copytree(stopped, tmp_path / "run"), list[str]()
    DAMAGES[damage][0](copy / "checkpoints" / "step-00000005" / file)
    trainings.trained(copy, FULL, resume=True, say=said.append)
    assert f"step-00000005/{file}" in said[0]
    assert DAMAGES[damage][1] in said[0] or file == "manifest.json"
    assert "after step 3" in said[1]
    assert_same(left(copy), places("moving_digits").left)


@pytest.mark.parametrize("damage", [*DAMAGES, "no checkpoint at all"])
def test_where_none_is_intact_nothing_is_begun(stopped: Path, forks: Forks, damage: str) -> None:
    """One message, exit code 2, and the run is as it was."""
    copy = shutil.copytree(stopped, stopped.with_name(f"damaged-{damage.split()[0]}"))
    if damage in DAMAGES:
        for folder in (copy / "checkpoints").iterdir():
            DAMAGES[damage][0](folder / "tensors.safetensors")
    else:
        shutil.rmtree(copy / "checkpoints")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    ended = forks(copy.parent, "train", "study.yaml", "--out", copy.name, "--resume")
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said[0]
    assert ("no intact checkpoint" if damage in DAMAGES else "no checkpoint") in ended.said[0]
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_journal_that_lost_records_is_refused(stopped: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(stopped, tmp_path / "run")
    (copy / "journal.jsonl").unlink()
    with pytest.raises(Mistake, match="records are lost"):
        trainings.trained(copy, FULL, resume=True)


# --- what may make a difference ---------------------------------------------------------------------------------------


def test_what_changed_since_is_said(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing where nothing did."""
    for name, threads in (("same", 1), ("other", 3)):
        copy, said = shutil.copytree(stopped, tmp_path / name), list[str]()
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        trainings.trained(copy, FULL, resume=True, say=said.append)
        expected = ["threads was 1 and is 3: the result may differ in its last bits from an uninterrupted one"]
        assert said[1:] == (expected if threads == 3 else [])
