"""What a person types: every mistake is one message and code 2, and the last line of `--json` is one object."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hjepa import cli, registry
from hjepa.train import Trainer

SMALL: dict[str, Any] = {
    "data": {"video": {"name": "moving_digits", "frames": 6, "size": 16, "digit_size": 8, "batch": 4}},
    "levels": {
        "frame": {
            "name": "forecast",
            "encoder": {"name": "conv", "width": 8, "base": 4},
            "predictor": {"name": "causal", "depth": 1, "heads": 2},
            "energy": "l2",
            "prevention": ["vicreg"],
        }
    },
    "train": {"steps": 3, "track": False, "device": "cpu"},
    "evaluate": {"samples": 8},
    "probes": {
        "where": {"name": "regression", "level": "frame", "target": "position"},
        "what": {"name": "regression", "level": "frame", "target": "label"},
    },
}


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> Any:
        """The last line of stdout."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def hjepa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command line in this process, in a folder with a small study."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["hjepa", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err + printed.out
        return Ended(ended.value.code or 0, printed.out, printed.err)

    return call


# --- help and usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "evaluate", "check", "plugins"])
def test_each_command_explains_itself(command: str, hjepa: Callable[..., Ended]):
    whole, one = hjepa("--help"), hjepa(command, "--help")
    assert (whole.code, one.code) == (0, 0)
    assert command in whole.out
    assert "--json" in one.out
    assert "--no-plugin NAME" in one.out
    assert "--help" in hjepa().out + hjepa().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "small"], "trian"),
        (["train"], "STUDY"),
        (["evaluate"], "RUN"),
        (["check", "small.yaml", "--jsn"], "--jsn"),
        (["train", "small.yaml", "--out"], "--out"),
        (["plugins", "energy", "l2", "more"], "more"),
        (["--version-of-what"], "--version-of-what"),
    ],
)
def test_a_wrong_call_is_one_message(arguments: list[str], said: str, hjepa: Callable[..., Ended]):
    ended = hjepa(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "smal"], "no study 'smal'"),
        (["train", "x" * 5000], "no study"),
        (["evaluate", "nowhere"], "no run at 'nowhere'"),
        (["evaluate", "x" * 5000], "no run at"),
        (["train", "small.yaml", "--resume", "--out", "nowhere"], "nothing to resume in nowhere"),
        (["train", "small.yaml", "--out", "small.yaml"], "small.yaml: the run's folder cannot be made"),
        (["train", "small.yaml", "--out", "."], ". is not empty"),
        (["check", "small.yaml", "seed"], "an override is written key=value"),
        (["check", "small.yaml", "--no-plugin", "hjepa_enrgy"], "did you mean 'hjepa_energy'"),
        (["check", "small.yaml", "--no-plugin", "hjepa_energy"], "unknown energy 'l2' (installed: none)"),
        (["train", "small.yaml", "train.device=nowhere"], "train.device: 'nowhere' cannot be used here"),
        (["train", "small.yaml", "levels.frame.weights=nowhere"], "no run at 'nowhere'"),
        (["plugins", "enregy"], "unknown kind 'enregy', did you mean 'energy'"),
        (["plugins", "energy", "l3"], "unknown energy 'l3', did you mean 'l2' or 'l1'"),
        (["plugins", "--no-plugin", "x"], "no plugin is called 'x'"),
    ],
)
def test_a_mistake_is_said_and_ends_with_2(arguments: list[str], said: str, hjepa: Callable[..., Ended]):
    ended = hjepa(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


def test_five_mistakes_are_five_lines_of_one_message(hjepa: Callable[..., Ended]):
    wrong = [
        "levels.frame.strid=2",
        "levels.frame.energy=l3",
        "train.steps=-1",
        "probes.where.level=fram",
        "data.video.frames=many",
    ]
    ended = hjepa("train", "small.yaml", *wrong)
    assert ended.code == 2
    lines = ended.err.strip().splitlines()
    assert lines[0] == "small: 5 mistakes"
    paths = [line.strip().partition(": ")[0] for line in lines[1:]]
    keys = ["levels.frame.strid", "levels.frame.energy.name", "train.steps", "probes.where.level", "data.video.frames"]
    assert sorted(paths) == sorted(keys)
    assert not Path("runs").exists()


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_shows_every_level(hjepa: Callable[..., Ended]):
    ended = hjepa("check", "small.yaml")
    assert (ended.code, ended.out) == (0, "")
    assert "frame" in ended.err
    assert "2 frames" in ended.err
    told = hjepa("check", "small.yaml", "data.video.frames=9", "--json").told
    assert told["study"] == "small"
    (row,) = told["levels"]
    assert (row["level"], row["kind"], row["reads"], row["steps"], row["width"], row["needs"]) == (
        "frame",
        "forecast",
        "video: frames",
        9,
        8,
        2,
    )
    assert row["parameters"] > 0


# --- train and evaluate -----------------------------------------------------------------------------------------------


def test_training_and_evaluating_end_with_0_and_one_object(hjepa: Callable[..., Ended]):
    ended = hjepa("train", "small.yaml", "--json")
    assert ended.code == 0
    assert ended.out.count("\n") == 1
    told = ended.told
    assert sorted(told) == ["metrics", "run", "seconds", "verdicts"]
    assert told["run"] == str(Path("runs/small").resolve())
    assert list(told["verdicts"]) == ["frame"]
    assert {"probe/where/r2", "collapse/frame/std_ratio"} <= set(told["metrics"])
    assert (Path(told["run"]) / "figures" / "summary.png").is_file()
    again = hjepa("evaluate", told["run"], "--probe", "what", "--json").told
    assert again["verdicts"] == told["verdicts"]
    assert again["metrics"] == {name: value for name, value in told["metrics"].items() if not name.startswith("probe/where/")}
    ended = hjepa("evaluate", "small", "--probe", "wat")
    assert ended.code == 2
    assert "no probe 'wat', did you mean 'what'? (the study has: what, where)" in ended.err.replace(
        "where, what", "what, where"
    )
    picture = (Path(told["run"]) / "figures" / "summary.png").read_bytes()
    other = hjepa("evaluate", "small", "data.video.seed=7", "--probe", "what", "--json").told
    scores, others = ({n: v for n, v in one["metrics"].items() if n.startswith("probe/what/")} for one in (again, other))
    assert scores.keys() == others.keys() and scores != others
    assert (Path(told["run"]) / "figures" / "summary.png").read_bytes() == picture
    ended = hjepa("evaluate", "small", "levels.frame.encoder.width=5")
    assert ended.code == 2
    assert (
        "levels.frame.encoder.width: only data, evaluate, probes, train.device can be changed of what is trained already"
        in ended.err
    )
    ended = hjepa("train", "small.yaml", "train.steps=4", "--resume")
    assert ended.code == 2
    assert "train.steps: was 3, now 4" in ended.err


def test_a_signal_ends_with_3_and_the_run_goes_on(hjepa: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch):
    step = Trainer.step

    def interrupted(self: Trainer, number: int, batches: Any) -> Any:
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, batches)

    monkeypatch.setattr(Trainer, "step", interrupted)
    ended = hjepa("train", "small.yaml", "--json")
    assert ended.code == 3
    assert "stopped after step 2; go on with --resume" in ended.err
    assert ended.told["run"] == str(Path("runs/small").resolve())
    monkeypatch.setattr(Trainer, "step", step)
    ended = hjepa("train", "small.yaml", "--resume")
    assert ended.code == 0
    assert "after step 2" in ended.err


# --- plugins ----------------------------------------------------------------------------------------------------------


def test_plugins_are_listed_by_kind_and_name(hjepa: Callable[..., Ended]):
    whole = hjepa("plugins")
    assert whole.code == 0
    for entry in registry.load().entries():
        assert f"  {entry.name} " in whole.out
    energies = hjepa("plugins", "energy").out
    assert "smooth_l1" in energies
    assert "conv" not in energies
    one = hjepa("plugins", "energy", "smooth_l1").out
    assert "beta: Positive = 1.0" in one
    assert "cosine" not in one
    macro_actions = hjepa("plugins", "macro_action").out
    assert "transformer" in macro_actions
    assert "causal" not in macro_actions


def test_what_a_component_logs_is_said_once(capsys: pytest.CaptureFixture[str]):
    for _ in "ab":
        cli._hear()
    logging.getLogger("hjepa.attention").info("attention of packed sets: sdpa")
    assert capsys.readouterr().err == "attention of packed sets: sdpa\n"


def test_plugins_in_json_say_who_gives_what_and_what_it_takes(hjepa: Callable[..., Ended]):
    told = hjepa("plugins", "--json").told
    assert sorted(told) == ["broken", "components", "conflicts", "failed"]
    assert (told["broken"], told["conflicts"], told["failed"]) == ({}, [], [])
    (beta,) = [one for one in told["components"] if one["name"] == "smooth_l1"]
    assert beta["kind"] == "energy"
    assert Path(beta["file"]).name == "smooth_l1.py"
    assert beta["distribution"].startswith("hjepa ")
    assert beta["options"] == {"beta": {"type": "Positive", "default": "1.0"}}


def test_plugins_check_imports_everything(hjepa: Callable[..., Ended]):
    ended = hjepa("plugins", "--check")
    assert (ended.code, ended.err) == (0, "")


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two distributions on the path: one fails, the components of the other do or contradict a shipped one."""
    code = """
from hjepa.hookspecs import hookimpl

@hookimpl
def register(components):
    components.add("energy", "gone", "y_gone:Gone")
    components.add("energy", "l1", "hjepa_energy.l1:L1")
"""
    for module, text in {"y_fails": "raise SystemExit('no')", "y_half": code}.items():
        info = tmp_path / "site" / f"{module}-2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 2\n")
        (info / "entry_points.txt").write_text(f"[hjepa]\n{module} = {module}\n")
        (tmp_path / "site" / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


@pytest.mark.usefixtures("broken")
def test_plugins_that_fail_contradict_or_are_not_there_are_told_with_1(hjepa: Callable[..., Ended]):
    ended = hjepa("plugins")
    assert ended.code == 1
    assert "smooth_l1" in ended.out
    assert "y-fails 2 (plugin y_fails) failed: SystemExit: no" in ended.err
    assert "energy 'l1' is registered by both" in ended.err
    checked = hjepa("plugins", "--check", "--json")
    assert checked.code == 1
    assert checked.told["failed"] == [{"plugin": "y_fails", "distribution": "y-fails 2", "error": "SystemExit: no"}]
    assert "ModuleNotFoundError" in checked.told["broken"]["energy gone"]
    assert len(checked.told["conflicts"]) == 1
    assert "gone" in hjepa("plugins", "--check").err
    assert hjepa("plugins", "--no-plugin", "y_fails", "--no-plugin", "y-half").code == 0
    assert hjepa("check", "small.yaml").code == 0
    ended = hjepa("check", "small.yaml", "levels.frame.energy=l1")
    assert ended.code == 2
    assert "leave one out with --no-plugin" in ended.err


# --- what is not imported ---------------------------------------------------------------------------------------------

QUICK = """
import contextlib, io, sys
from hjepa import cli
for arguments in (["--help"], ["train", "--help"], ["plugins"], ["plugins", "--json"], ["plugins", "energy", "l2"], ["plugins", "x"]):
    sys.argv = ["hjepa", *arguments]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cli.main()
heavy = "torch numpy mlflow optuna xformers sklearn scipy matplotlib torchdata safetensors pandas".split()
print(*[name for name in heavy if name in sys.modules])
"""


def test_help_and_listings_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
