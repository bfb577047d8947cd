"""What must hold on a GPU; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from planned import PLANNER, setting

from hjepa import registry, runs, train
from hjepa.planning import maps
from hjepa.randomness import Key, bits, uniform
from hjepa.study import read

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

TINY = (
    "data.video.frames=8",
    "data.video.size=16",
    "data.video.digit_size=8",
    "data.video.batch=4",
    "data.video.held_out=16",
    "levels.frame.encoder.width=16",
    "train.device=cuda",
    "train.diagnose_every=2",
    "train.checkpoint_every=2",
    "evaluate.samples=16",
    "probes={}",
)


def trained(folder: Path, steps: int, resume: bool = False, *more: str) -> dict[str, torch.Tensor]:
    plugins = registry.load()
    study = read("quickstart", [*TINY, f"train.steps={steps}", *more], plugins)
    study.complain()
    run = runs.Run(folder) if resume else runs.create(study, folder, plugins)
    train.train(study, run, plugins, resume, print, lambda trainer, values: None, lambda result: None)
    return train.checkpoint.newest(run.checkpoints, print).tensors


def test_keyed_numbers_are_those_of_the_cpu() -> None:
    ids = torch.arange(1000)
    on_cpu, on_gpu = Key.of(3, "stream").fold(ids), Key.of(3, "stream", device="cuda").fold(ids.cuda())
    assert torch.equal(bits(on_cpu, "x", (7,)), bits(on_gpu, "x", (7,)).cpu())
    assert torch.equal(uniform(on_cpu, "x", (7,)), uniform(on_gpu, "x", (7,)).cpu())


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    one, two = trained(tmp_path / "one", 4), trained(tmp_path / "two", 4)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_step_is_that_of_the_cpu(tmp_path: Path) -> None:
    gpu = trained(tmp_path / "gpu", 2)
    cpu = trained(tmp_path / "cpu", 2, False, "train.device=cpu")
    for name, value in cpu.items():
        if name.startswith("model/"):
            torch.testing.assert_close(gpu[name], value, atol=5e-3, rtol=5e-2, msg=name)


def test_every_policy_acts_as_on_the_cpu() -> None:
    """What was learned is judged with other rounding there; who plans in nothing that was learned goes the same ways."""
    ladder = {
        "horizon": {"state": 4, "room": 2},
        "costs": {label: {"name": "distance", "level": label} for label in ("state", "room", "world")},
        "planner": {"name": "hierarchical", "inner": PLANNER},
        "beside": {"exact": {"exact": ["room"]}, "flat": {"horizon": {"state": 2}, "planner": PLANNER}},
    }
    gpu, cpu = (setting(device=device, **ladder) for device in ("cuda", "cpu"))
    acted = {name: gpu.act(name).record for name in gpu.policies()}
    assert list(acted) == ["random", "straight", "oracle", "planned", "exact", "flat"]
    assert all(record.reached.is_cuda and record.position.is_cuda for record in acted.values())
    for name in ("random", "straight"):
        torch.testing.assert_close(acted[name].position.cpu(), cpu.act(name).record.position)


def test_what_a_room_costs_is_that_of_the_cpu() -> None:
    gpu, cpu = (maps.of_task(setting(device=device), 0, (65, 65)) for device in ("cuda", "cpu"))
    torch.testing.assert_close(gpu.cost.cpu(), cpu.cost, atol=1e-4, rtol=1e-3)


def test_loading_stays_ahead_with_workers(tmp_path: Path) -> None:
    one, two = trained(tmp_path / "one", 4), trained(tmp_path / "two", 4, False, "train.workers=2")
    assert all(torch.equal(one[name], two[name]) for name in one if name.startswith("model/"))
