"""Every study that ships runs: composed at full size, trained for a few steps at a small one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hjepa import optimizers, registry, runs, stack, train
from hjepa.study import read

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
SMALL = ("train.steps=2", "train.diagnose_every=1", "evaluate.samples=8")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_runs(path: Path, tmp_path: Path) -> None:
    plugins = registry.load()
    full = read(str(path), (), plugins)
    full.problems += optimizers.problems(full)
    stack.check(full)
    few = [f"data.{label}.{key}" for label in full.sources for key in ("batch=2", "held_out=16")]
    study = read(str(path), [*SMALL, *few], plugins)
    study.complain()
    run = runs.create(study, tmp_path / "run", plugins)
    result = train.train(study, run, plugins, False, print, lambda trainer, values: None, lambda result: None)
    assert result.outcome == "done"
    assert set(result.verdicts) == set(study.levels)
    assert any(name.startswith("probe/") for name in result.metrics)


def test_there_are_studies() -> None:
    assert len(STUDIES) >= 3
