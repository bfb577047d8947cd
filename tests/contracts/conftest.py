"""The plugin of these tests and its laboratory, `import contract_lab`; each study is trained once for all tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "plugin")]

import contract_lab  # noqa: E402


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Study -> the folder of its run, three steps long, with checkpoints after the second and the third."""
    runs: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in runs:
            low = f"levels.frame.weights={run('low')}/frame" if name == "hwm" else None
            runs[name] = tmp_path_factory.mktemp(name) / "run"
            contract_lab.train(contract_lab.study(name, *filter(None, [low])), runs[name])
        return runs[name]

    return run
