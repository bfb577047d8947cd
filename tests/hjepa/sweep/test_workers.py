"""The processes of a sweep: killed, stopped, continued; and what a person sees of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sweeps import SEARCH, TINY, events, planned, until
from sweeps import postgres as postgres

from hjepa import cli
from hjepa.search import base_of

# --- processes --------------------------------------------------------------------------------------------------------


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    main = "from hjepa.cli import main; main()"
    command = [sys.executable, "-c", main, "sweep", "tiny.yaml", "--workers", "2", "--json", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def children(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def amid(folder: Path) -> list[Path]:
    """Trials that have saved something and have not ended."""
    runs = [path for path in folder.glob("runs/tiny-sweep/trials/*") if len(list(path.glob("checkpoints/step-*"))) > 1]
    return [run for run in runs if b'"finished"' not in (run / "journal.jsonl").read_bytes()]


def survives(folder: Path, *storage: str) -> None:
    """A worker is killed amid its trial, then the whole sweep is stopped, then it is continued."""
    study_of = {**TINY, "train": {**TINY["train"], "steps": 100, "checkpoint_every": 5}, "search": SEARCH}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(study_of))
    first = started(folder, "--trials", "3", *storage)
    until(lambda: len(amid(folder)) == 2)
    os.kill(children(first)[0], signal.SIGKILL)
    taken_up = until(lambda: [step for run in amid(folder) for _, step in events(run, "resumed")])
    assert min(taken_up) >= 5, "the checkpoint was there"
    first.terminate()
    assert first.wait(60) == cli.STOPPED
    second = started(folder, "--trials", "3", *storage)
    told = json.loads(second.communicate(timeout=200)[0])
    assert second.returncode == cli.DONE
    assert told["trials"] == {"complete": 3}
    runs = sorted((folder / "runs/tiny-sweep/trials").iterdir())
    assert [run.name for run in runs] == ["0", "1", "2"]
    assert all(len(events(run, "started")) <= 1 for run in runs), "a trial was begun anew"
    assert sum(("finished", 100) in events(run, "finished") for run in runs) == 3


def test_killed_workers_and_a_stopped_sweep_lose_nothing(tmp_path: Path):
    survives(tmp_path)


def test_the_same_with_postgresql(tmp_path: Path, postgres: str):
    survives(tmp_path, "--storage", postgres)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "tiny.yaml", "search.sampler=tpp"], "search.sampler: there is no such one, did you mean 'tpe'"),
        (["check", "tiny.yaml", "search.objective={probe/were/r2: maximize}"], "did you mean 'where'"),
        (["sweep", "tiny.yaml", "search.pruner={name: median, startup: 3}"], "search.pruner.startup: unknown key"),
        (["sweep", "tiny.yaml"], "how many trials"),
        (["sweep", "tiny.yaml", "search=null"], "needs the key `search`"),
        (["sweep", "tiny.yaml", "--trials", "2", "--storage", "nowhere"], "--storage: a URL is needed"),
    ],
)
def test_a_mistake_is_said_before_anything_is_trained(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump({**TINY, "search": SEARCH}))
    monkeypatch.setattr(sys, "argv", ["hjepa", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == cli.MISTAKE
    assert said in capsys.readouterr().err
    assert not list(Path().glob("runs/*/trials/*"))


def test_the_study_itself_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump({**TINY, "search": SEARCH}))
    monkeypatch.setattr(sys, "argv", ["hjepa", "train", "tiny.yaml", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(tmp_path / "runs" / "tiny")
    assert "search" not in base_of(planned())
