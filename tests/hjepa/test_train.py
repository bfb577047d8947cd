"""The training loop's promises, one by one. That it can be interrupted at any moment is in test_resume.py."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainings
import yaml
from torch import Tensor
from trainings import FULL, SMALL, STEPS, Forks, assert_same, changed, digests, left

from hjepa import journal, loading, train
from hjepa.errors import Mistake
from hjepa.hookspecs import hookimpl


def batches(trainer: train.Trainer, *steps: int) -> Iterator[tuple[int, Any]]:
    return loading.batches(trainer.sources, range(steps[0], steps[-1] + 1), 0, trainer.device)


def state(trainer: train.Trainer) -> dict[str, str]:
    return digests(trainer.state()[0])


def written(folder: Path, raw: Mapping[str, Any]) -> Path:
    (folder / "study.yaml").write_text(yaml.safe_dump(dict(raw)))
    return folder


# --- what depends on what ---------------------------------------------------------------------------------------------


def weights(folder: Path, raw: Mapping[str, Any], level: str = "") -> dict[str, bytes]:
    """Of one level, or all of them, after training."""
    trainings.trained(folder, raw)
    saved = train.checkpoint.newest(folder / "checkpoints", lambda message: None)
    chosen = {name: tensor for name, tensor in saved.tensors.items() if name.startswith(f"model/levels.{level}")}
    assert chosen
    return {name: tensor.numpy().tobytes() for name, tensor in chosen.items()}


def test_the_seed_decides(tmp_path: Path) -> None:
    first = weights(tmp_path / "first", SMALL)
    assert weights(tmp_path / "again", SMALL) == first
    other = weights(tmp_path / "other", changed(SMALL, ("seed", 1)))
    assert all(other[name] != first[name] for name in first if "bias" not in name and "norm" not in name)


def test_what_one_level_is_told_does_not_change_another(tmp_path: Path) -> None:
    """`moment` stops the gradient, so nothing of it may reach `frame`: neither its initial weights nor its random numbers."""
    frame = weights(tmp_path / "first", SMALL, "frame")
    wider = changed(SMALL, ("levels.moment.encoder.width", 6), ("levels.moment.predictor.dropout", 0.5))
    assert weights(tmp_path / "wider", wider, "frame") == frame
    alone = {**SMALL, "levels": {"frame": SMALL["levels"]["frame"]}}
    assert weights(tmp_path / "alone", alone, "frame") == frame


def test_the_order_of_what_is_written_does_not_count(tmp_path: Path) -> None:
    """Keys of a level, and levels that read nothing of each other."""
    both = changed(SMALL, ("levels.moment.encoder", SMALL["levels"]["frame"]["encoder"]))
    both = changed(both, ("levels.frame.reads", "frames"), ("levels.moment.reads", "frames"))
    turned = {**both, "levels": {label: dict(reversed(both["levels"][label].items())) for label in ("moment", "frame")}}
    assert weights(tmp_path / "turned", turned) == weights(tmp_path / "both", both)


# --- what is not finite -----------------------------------------------------------------------------------------------

SPOILED: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"value": math.nan}, r"term 'spoiled.drift' of level 'moment' is nan"),
    "inf": ({"value": math.inf}, r"term 'spoiled.drift' of level 'moment' is inf"),
    "gradient": ({"only_gradient": True}, r"every term is finite, but the gradient of levels\.moment\.\S+ is not"),
}


def spoiled(**options: Any) -> dict[str, Any]:
    preventions = [{"name": "ema", "momentum": 0.9}, {"name": "spoiled", "at": 2, **options}]
    return changed(SMALL, ("levels.moment.prevention", preventions))


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("case", SPOILED)
def test_what_is_not_finite_stops_before_the_optimizer(tmp_path: Path, case: str, clip: float | None) -> None:
    """Weights, teacher and moments are those of the step before; step, term and level are named."""
    options, words = SPOILED[case]
    trainer = trainings.opened(tmp_path / "run", changed(spoiled(**options), ("train.clip", clip)))
    for step, given in batches(trainer, 0, 1):
        trainer.step(step, given)
    before = state(trainer)
    with pytest.raises(train.Diverged, match=rf"^step 3: .*{words}"):
        for step, given in batches(trainer, 2):
            trainer.step(step, given)
    assert state(trainer) == before


def test_a_norm_that_overflows_is_called_so(tmp_path: Path) -> None:
    trainer = trainings.opened(tmp_path / "run", spoiled(value=1e38))
    with pytest.raises(train.Diverged, match="every term is finite, but too large"):
        for step, given in batches(trainer, 2):
            trainer.step(step, given)


def test_it_fails_with_one_message_and_code_1(tmp_path: Path, forks: Forks) -> None:
    ended = forks(written(tmp_path, spoiled()), "train", "study.yaml", "--out", "run")
    assert ended.code == 1
    assert "Traceback" not in ended.said[0]
    assert "step 3: the gradient is not finite" in ended.said[0]
    last = list(journal.read(tmp_path / "run" / "journal.jsonl"))[-1]
    assert (last["event"], last["outcome"], last["step"]) == ("finished", "failed", 2)
    assert "term 'spoiled.drift' of level 'moment' is nan" in last["error"]
    assert left(tmp_path / "run").step == 2


def test_one_read_of_the_device_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are int64 and lie on the CPU; whatever else is read would wait for a device."""
    trainer = trainings.opened(tmp_path / "run", FULL)
    reads: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(Tensor, name)

        def read(self: Tensor, *rest: Any, **options: Any) -> Any:
            reads.extend([name] * (self.dtype is not torch.int64))
            return real(self, *rest, **options)

        return read

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "nonzero"):
        monkeypatch.setattr(Tensor, name, counted(name))
    for step, given in batches(trainer, 0, 5):
        reads.clear()
        trainer.step(step, given)
        assert reads == ["__bool__"]


# --- what is called, and when -----------------------------------------------------------------------------------------


class Listener:
    """A plugin that notes what it is told, and one of whose hooks fails."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    @hookimpl
    def run_started(self, study: dict[str, Any], step: int) -> None:
        assert study["train"]["steps"] == 4
        self.heard.append(("started", step))

    @hookimpl
    def step_done(self, run: Path, step: int) -> None:
        self.heard.append(("step", step))
        raise KeyError("mine")

    @hookimpl
    def checkpoint_saved(self, step: int, checkpoint: Path) -> None:
        assert (checkpoint / "manifest.json").exists()
        self.heard.append(("checkpoint", step))

    @hookimpl
    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self.heard.append(("evaluated", step))

    @hookimpl
    def run_finished(self, step: int, outcome: str) -> None:
        self.heard.append((outcome, step))


def test_plugins_hear_of_everything_in_order_and_cannot_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, said, found = Listener(), list[str](), trainings.installed()
    found.manager.register(listener, "listener")
    monkeypatch.setattr(trainings, "installed", lambda: found)
    result = trainings.trained(tmp_path / "run", SMALL, say=said.append)
    assert (result.outcome, result.step) == ("done", 4)
    steps = [("step", 1), ("checkpoint", 2), ("step", 2), ("step", 3), ("checkpoint", 4), ("step", 4)]
    assert listener.heard == [("checkpoint", 0), ("started", 0), *steps, ("evaluated", 4), ("done", 4)]
    assert said == ["plugin listener: step_done failed: KeyError: 'mine'"] * 4


def test_what_is_recorded(tmp_path: Path) -> None:
    result = trainings.trained(tmp_path / "run", changed(SMALL, ("train.log_every", 3)))
    found = left(tmp_path / "run")
    assert [step for _, step, _ in found.records] == [0, 2, 3, 4, 4]
    assert found.events[:2] == [("started", 0), ("verdicts", 0)]
    assert found.events[-3:] == [("verdicts", 4), ("effects", 4), ("finished", 4)]
    _, look, log, both, _ = (set(metrics) for _, _, metrics in found.records)
    terms = {"loss/frame/prediction", "loss/frame/vicreg.std", "loss/moment/sigreg.normal", "gradient_norm", "lr"}
    assert terms | {"energy/frame", "trivial/moment"} <= log == both - {name for name in both if name.startswith("collapse/")}
    assert look == both
    assert {"collapse/frame/std", "collapse/moment/std_ratio"} <= look
    assert result.metrics.keys() >= look & {name for name in look if name.startswith("collapse/")}


def test_probes_are_measured_meanwhile_on_another_split_and_change_nothing(tmp_path: Path) -> None:
    probe = {"where": {"name": "regression", "level": "frame", "target": "position"}}
    asked = changed(SMALL, ("probes", probe), ("train.log_every", 4), ("train.diagnose_every", 4))
    trainings.trained(tmp_path / "asked", changed(asked, ("evaluate.every", 1)))
    trainings.trained(tmp_path / "plain", asked)
    records = [line for line in journal.read(tmp_path / "asked" / "journal.jsonl") if "metrics" in line]
    found = {line["step"]: value for line in records if (value := line["metrics"].get("probe/where/valid_r2")) is not None}
    assert list(found) == [1, 2, 3, 4] and len(set(found.values())) == 4
    assert left(tmp_path / "asked").digests == left(tmp_path / "plain").digests


def test_the_recorded_norm_is_that_of_the_gradient_before_it_is_cut(tmp_path: Path) -> None:
    trainings.trained(tmp_path / "free", SMALL)
    trainings.trained(tmp_path / "cut", changed(SMALL, ("train.clip", 1e-3)))
    free, cut = (left(tmp_path / name).records[1][2] for name in ("free", "cut"))
    assert free == cut
    assert free["gradient_norm"] > 1e-3


def test_a_step_for_which_no_source_has_a_batch_changes_nothing(tmp_path: Path) -> None:
    trainer = trainings.opened(tmp_path / "run", changed(SMALL, ("data.video.every", 2)))
    (first, given), (second, nothing) = batches(trainer, 0, 1)
    trainer.step(first, given)
    before = state(trainer)
    assert not nothing
    assert trainer.step(second, nothing) == {}
    assert state(trainer) == before
    trainings.trained(tmp_path / "whole", changed(SMALL, ("data.video.every", 2)))
    norms = [metrics["gradient_norm"] for _, _, metrics in left(tmp_path / "whole").records[1:-1]]
    assert [norm > 0 for norm in norms] == [True, False, True, False]


def test_an_empty_split_is_a_mistake(tmp_path: Path) -> None:
    np.save(tmp_path / "video.npy", np.random.default_rng(0).random((12, 8, 1, 16, 16), dtype=np.float32))
    source = {"name": "arrays", "path": str(tmp_path / "video.npy"), "batch": 4, "valid": 0.0, "test": 0.2}
    with pytest.raises(Mistake, match=r"data\.video: its split 'valid' is empty"):
        trainings.opened(tmp_path / "run", changed(SMALL, ("data.video", source)))


def test_weights_of_another_run(tmp_path: Path) -> None:
    """Taken at the start alone: who resumes or evaluates does not need that run any more."""
    trainings.trained(tmp_path / "first", SMALL)
    raw = changed(SMALL, ("levels.frame.weights", str(tmp_path / "first")), ("levels.frame.frozen", True))
    trainings.trained(tmp_path / "second", raw)
    one, two = (train.checkpoint.newest(tmp_path / name / "checkpoints", print).tensors for name in ("first", "second"))
    frame = [name for name in one if name.startswith("model/levels.frame.")]
    assert frame
    assert all(torch.equal(one[name], two[name]) for name in frame)
    (tmp_path / "first").rename(tmp_path / "moved")
    assert trainings.trained(tmp_path / "second", raw, resume=True).outcome == "done"
    with pytest.raises(Mistake, match="no run at"):
        trainings.trained(tmp_path / "third", raw)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_one_training_a_folder(tmp_path: Path, forks: Forks) -> None:
    ended = forks(written(tmp_path, SMALL), "train", "study.yaml", "--out", "run", step=2, signal=signal.SIGTERM)
    assert ended.code == 3
    plan = trainings.parsed(SMALL)
    with train.runs.reopen(plan, tmp_path / "run").locked():
        ended = forks(tmp_path, "train", "study.yaml", "--out", "run", "--resume")
    assert ended.code == 2
    assert "another process is training in this folder" in ended.said[0]
    assert forks(tmp_path, "train", "study.yaml", "--out", "run", "--resume").code == 0


# --- several processes ------------------------------------------------------------------------------------------------


def shown(folder: Path) -> list[dict[str, str]]:
    """The digests that both processes had in their memory at the end."""
    return [json.loads((folder / f".weights-{rank}").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    folder = written(tmp_path_factory.mktemp("two"), FULL)
    ended = forks(folder, "train", "study.yaml", "--out", "whole", "--json", processes=2)
    assert ended.codes == [0, 0], ended.said
    assert ended.said[1] == ""
    assert json.loads(ended.said[0].splitlines()[-1])["verdicts"].keys() == {"frame", "moment"}
    return folder


def test_both_processes_have_the_same_weights_and_one_writes(two: Path) -> None:
    """P25, with dropout, batch norm, a queue and a teacher."""
    found = left(two / "whole")
    assert shown(two) == [found.digests, found.digests]
    assert [n for n, _, _ in found.records] == list(range(STEPS + 2))
    assert found.events[-1] == ("finished", STEPS)
    assert sorted(path.name for path in two.iterdir() if not path.name.startswith(".")) == ["study.yaml", "whole"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_to_one_stops_both_at_the_same_step(two: Path, forks: Forks, which: int) -> None:
    name = f"stopped-{which}"
    argv = ["train", "study.yaml", "--out", name]
    ended = forks(two, *argv, processes=2, step=4, signal=signal.SIGTERM, which=which)
    assert ended.codes == [3, 3], ended.said
    assert ended.said[1] == ""
    assert left(two / name).step == 5
    assert forks(two, *argv, "--resume", processes=2).codes == [0, 0]
    assert shown(two)[0] == shown(two)[1]
    assert_same(left(two / name), left(two / "whole"))


def test_one_is_killed_and_both_go_on(two: Path, forks: Forks) -> None:
    argv = ["train", "study.yaml", "--out", "killed", "train.workers=1"]
    ended = forks(two, *argv, processes=2, call=500)
    assert ended.codes[0] == -signal.SIGKILL
    assert ended.codes[1] != 0
    assert not ended.behind
    assert forks(two, *argv, "--resume", processes=2).codes == [0, 0]
    assert_same(left(two / "killed"), left(two / "whole"))


def test_a_mistake_is_one_in_both(two: Path, forks: Forks) -> None:
    ended = forks(two, "train", "study.yaml", "--out", "whole", processes=2)
    assert ended.codes == [2, 2]
    assert all("whole is not empty" in said and "Traceback" not in said for said in ended.said)
    ended = forks(two, "train", "study.yaml", "--out", "odd", "data.video.batch=5", processes=2)
    assert ended.codes == [2, 2]
    assert "5 cannot be shared by 2 processes" in ended.said[0]


def test_two_processes_train_as_one_does(tmp_path: Path, forks: Forks) -> None:
    """The mean over processes is the loss of the whole batch; what is recorded is that mean."""
    written(tmp_path, changed(SMALL, ("train.optimizer", {"name": "sgd", "lr": 0.01})))
    assert forks(tmp_path, "train", "study.yaml", "--out", "one").code == 0
    assert forks(tmp_path, "train", "study.yaml", "--out", "two", processes=2).codes == [0, 0]
    one, two = (left(tmp_path / name).records for name in ("one", "two"))
    assert [step for _, step, _ in one] == [step for _, step, _ in two]
    for (_, _, here), (_, _, there) in zip(one, two, strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-5)
