"""Every study that ships runs: composed at full size, trained for a few steps at a small one."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from hjepa import optimizers, planning, registry, runs, stack, train
from hjepa.parts import Component
from hjepa.study import Study, read
from hjepa_control import recording

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
LEARNING = [path for path in STUDIES if "\nlevels:" in path.read_text() or "\nextends:" in path.read_text()]
ACTING = [path for path in STUDIES if path not in LEARNING]
SMALL = ("train.steps=2", "train.diagnose_every=1", "evaluate.samples=8")
FEW = {"samples": 8, "elites": 2, "iterations": 2, "starts": 2}
"""Options of planners that say how much is searched."""


@pytest.mark.parametrize("path", LEARNING, ids=lambda path: path.stem)
def test_every_study_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plugins = registry.load()
    full, study = _read(path, tmp_path, plugins)
    full.problems += optimizers.problems(full)
    stack.check(full)
    run = runs.create(study, tmp_path / "run", plugins)
    result = train.train(study, run, plugins, False, print, lambda trainer, values: None, lambda result: None)
    assert result.outcome == "done"
    assert set(result.verdicts) == set(study.levels)
    assert any(name.startswith("probe/") for name in result.metrics)
    if study.plan:
        _plans(run.path, study, plugins)


@pytest.mark.parametrize("path", LEARNING, ids=lambda path: path.stem)
def test_what_a_step_has_made_does_not_wait_for_the_garbage_collector(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes ever more seldom, and until then every step would add to what is held."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plugins = registry.load()
    _, study = _read(path, tmp_path, plugins)
    trainer = train.Trainer(study, runs.create(study, tmp_path / "run", plugins), plugins, print)
    batches = list(train.loading.batches(trainer.sources, range(2), 0, trainer.device))
    trainer.step(*batches[0])  # once, for what is made but for the first step
    gc.collect()
    gc.disable()
    try:
        trainer.step(*batches[1])
        trainer.monitor.look(2, settled=False)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = [type(one).__name__ for one in gc.garbage if isinstance(one, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kept


def _read(path: Path, tmp_path: Path, plugins: registry.Registry) -> tuple[Study, Study]:
    """A study at its full size, and at a small one."""
    whole = read(str(path), (), plugins)
    folders = _folders(whole, tmp_path) + _files(whole, tmp_path)
    full = read(str(path), folders, plugins)
    few = [f"data.{label}.batch=2" for label in full.sources]
    drawn = [
        label for label, plan in full.sources.items() if {"held_out", "file"} & plan.component.options.keys() == {"held_out"}
    ]
    few += [f"data.{label}.held_out=16" for label in drawn]
    small = read(str(path), [*SMALL, *folders, *few], plugins)
    small.complain()
    return full, small


def _plans(path: Path, study: Study, plugins: registry.Registry) -> None:
    """In all of its ways, in what little it has learned; so far that three levels have more than a step to plan."""
    few = ["plan.steps=33", "plan.tasks={count: 2}", *_less_search(study)]
    setting = planning.of_run(str(path), few, plugins, print)
    for name in setting.ways:
        assert setting.act(name).scores["evaluations"] > 0, name


def _folders(study: Study, path: Path) -> list[str]:
    """Where a source reads a person's own files: a folder of images in two folders."""
    labels = [label for label, plan in study.sources.items() if "path" in plan.component.options]
    for label in labels:
        for number in range(80):
            file = path / label / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (3 * number, 200 * (number % 2), 100)).save(file)
    return [f"data.{label}.path={path / label}" for label in labels]


def _files(study: Study, path: Path) -> list[str]:
    """Where a source reads walks that have been recorded: a few of them, in the world that is planned in."""
    labels = [label for label, plan in study.sources.items() if "file" in plan.component.options]
    for label in labels:
        pytest.importorskip("gymnasium_robotics", reason="needs pip install 'hjepa[sim]'")
        assert study.plan
        world = study.plan.environment.options["of"]
        os.environ.setdefault("MUJOCO_GL", "egl")
        recording.record(recording.walks(world.name, world.options, 34, 0), path / f"{label}.h5", 12, {})
    return [f"data.{label}.file={path / label}.h5" for label in labels]


@pytest.mark.parametrize("path", ACTING, ids=lambda path: path.stem)
def test_what_acts_without_learning_acts(path: Path) -> None:
    plugins = registry.load()
    full = read(str(path), (), plugins)
    few = ["plan.steps=3", "plan.tasks.count=2", *_less_search(full)]
    setting = planning.of_run(str(path), few, plugins, print)
    acted = {name: setting.act(name) for name in setting.policies()}
    assert full.plan
    assert list(acted) == ["random", "straight", "oracle", *full.plan.beside]
    assert all(acted[name].scores["evaluations"] > 0 for name in setting.ways)


def _less_search(study: Study) -> list[str]:
    """Every planner of a study, those within others too, with few of whatever it searches."""
    assert study.plan
    parts = [part for way in study.plan.ways().values() for part in way.planner.walk() if isinstance(part, Component)]
    return [f"{part.path}.{option}={few}" for part in parts for option, few in FEW.items() if option in part.options]


def test_there_are_studies() -> None:
    assert len(LEARNING) >= 3 and ACTING
