"""README says what is so: its commands, its tree, its study, its example of a mistake and of a component."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from hjepa import planning, registry, search, stack
from hjepa.contracts import Energy, Spec
from hjepa.errors import StudyMistake
from hjepa.study import parse, read
from hjepa.written import data_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_both_commands_are_named_and_run_by_ci() -> None:
    assert "pip install -e . && hjepa train quickstart\n" in README
    assert "pip install -e '.[test]' && pytest -n auto\n" in README
    assert "pip install -q -e '.[test]' && pytest -n auto\n" in (ROOT / ".ci" / "run").read_text()


def test_the_tree_is_complete() -> None:
    tree = README[README.index("## The house") : README.index("## A study")]
    for path in (ROOT / "hjepa").glob("*.py"):
        assert path.name == "__init__.py" or path.name in tree, path.name
    for path in (ROOT / "hjepa").glob("*/__init__.py"):
        assert f"  {path.parent.name}/ " in tree, path.parent.name
    for path in (ROOT / "plugins").iterdir():
        assert path.name.endswith(".egg-info") or path.name in tree, path.name


def test_every_component_is_in_the_tree() -> None:
    for entry in registry.load().entries():
        assert re.search(rf"\b{entry.name}\b", README), entry


def test_the_study_is_valid() -> None:
    study = parse(yaml.safe_load(blocks("yaml")[0]), registry.load())
    stack.check(study)


def test_the_search_is_valid() -> None:
    quickstart, _ = data_of(ROOT / "studies" / "quickstart.yaml", (), [])
    study = parse({**quickstart, **yaml.safe_load(blocks("yaml")[3])}, registry.load())
    assert [*study.problems, *search.problems(study, registry.load())] == []


def test_the_plan_is_valid() -> None:
    quickstart, _ = data_of(ROOT / "studies" / "quickstart.yaml", (), [])
    quickstart["levels"] = dict(zip(("state", "room"), quickstart["levels"].values(), strict=True))
    plan, beside = (yaml.safe_load(block) for block in blocks("yaml")[1:3])
    for more in ({}, beside):
        study = parse({**quickstart, "probes": {}, "plan": plan["plan"] | more}, registry.load())
        assert [*study.problems, *planning.problems(study)] == []


def test_the_mistake_reads_as_it_is_printed() -> None:
    study = read("quickstart", ["data.video.frames=6"], registry.load())
    with pytest.raises(StudyMistake) as caught:
        stack.check(study)
    assert str(caught.value) in README


def test_the_component_works(tmp_path: Path) -> None:
    source = next(block for block in blocks("python") if "class Huber" in block)
    (tmp_path / "my_huber.py").write_text(source)
    spec = importlib.util.spec_from_file_location("my_huber", tmp_path / "my_huber.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["my_huber"] = module
    try:
        spec.loader.exec_module(module)
        assert registry.unmet(module.Huber, Energy) == []
        energy = module.Huber(Spec(width=3), delta=1.0)
        assert energy(torch.zeros(2, 3), torch.ones(2, 3)).tolist() == [0.5, 0.5]
    finally:
        del sys.modules["my_huber"]


def test_every_verdict_is_explained() -> None:
    for word in ("complete collapse", "dimensional collapse", "shortcut", "diverged"):
        assert f"`{word} ...`" in README
