"""Small trainings for all tests here: `import trainings` works, and `forks` runs the command in forks of a warm process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import trainings
from mirrors import mlflow_run as mlflow_run


@pytest.fixture(scope="session")
def forks() -> Iterator[trainings.Forks]:
    with trainings.Forks() as made:
        yield made
