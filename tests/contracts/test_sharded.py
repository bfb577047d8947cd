"""Two processes that share every batch learn what one learns from all of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import contract_lab as lab
import pytest
import torch
from torch import Tensor

from hjepa.stack import unique_state

SGD = "train.optimizer.name=sgd train.optimizer.lr=0.1"
"""A bias of keys has no gradient but for rounding, which Adam would make as large as any other."""
STUDIES = ["sharded", "mc_jepa", f"i_jepa {SGD}", f"masked_under_forecast {SGD}"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have made of the studies."""
    folder = tmp_path_factory.mktemp("shared")
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", lab.__file__, str(folder), json.dumps(STUDIES)]
    assert subprocess.run(command, env={**os.environ, **common}, timeout=120).returncode == 0
    return folder


@pytest.mark.parametrize("study", STUDIES)
def test_sharing_a_batch_changes_nothing(study: str, shared: Path, tmp_path: Path) -> None:
    """P15: statistics, queues, teachers and macro-actions included."""
    name, *overrides = study.split(" ")
    made = lab.trainer(name, tmp_path / "run", *overrides)
    before = {key: tensor.clone() for key, tensor in unique_state(made.stack).items()}
    lab.steps(made)
    together: dict[str, Tensor] = torch.load(shared / f"{name}.pt")
    for key, tensor in unique_state(made.stack).items():
        torch.testing.assert_close(together[key], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert any(not torch.equal(tensor, before[key]) for key, tensor in together.items())
