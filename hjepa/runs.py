"""A run's folder: `study.yaml` as written, `resolved.yaml`, `versions.json`, `journal.jsonl`, `checkpoints/`, `figures/`."""

from __future__ import annotations

import fcntl
import importlib.metadata as metadata
import json
import os
import platform
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hjepa.errors import Mistake, listed
from hjepa.journal import sync
from hjepa.registry import Registry
from hjepa.study import Study

FREE = (
    *("train.workers.", "train.device.", "train.keep.", "train.checkpoint_every.", "train.track.", "train.alarm."),
    *("evaluate.", "probes.", "search.", "plan."),
)
"""What may differ when a run is resumed: nothing that training depends on."""
UNFINISHED = ("study.yaml", "versions.json", ".resolved.yaml", "trial.json")
"""All that a run holds that ended before it was one."""


class Busy(Mistake):
    """Somebody else trains there."""


@dataclass(frozen=True)
class Run:
    """The files of one training."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else trains in this folder meanwhile."""
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: that one would live on in orphaned workers
            except OSError:
                raise Busy(f"{self.path}: another process is training in this folder") from None
            yield

    def resolved(self) -> dict[str, Any]:
        """The study of the run, with every default."""
        try:
            found = yaml.safe_load((self.path / "resolved.yaml").read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise Mistake(f"{self.path} is not a run: resolved.yaml cannot be read ({error})") from None
        if not isinstance(found, dict):
            raise Mistake(f"{self.path} is not a run: resolved.yaml holds no study")
        return found


def create(study: Study, out: Path | None, registry: Registry) -> Run:
    """A new folder: `out`, or the next free one in `runs/`. `resolved.yaml`, which makes it a run, comes last and at once."""
    base = Path("runs") / study.name
    try:
        path = out or _free(base)
        path.mkdir(parents=True, exist_ok=True)
        files = [file.name for file in path.iterdir()]
    except (OSError, ValueError) as error:
        raise Mistake(f"{out or base}: the run's folder cannot be made: {error}") from None
    if set(files) - set(UNFINISHED):
        raise Mistake(f"{path} is not empty: give --resume to go on with the run in it, or another --out")
    try:
        (path / "study.yaml").write_text(study.text)
        (path / "versions.json").write_text(json.dumps({"run_id": uuid.uuid4().hex, **versions(registry)}, indent=1))
        write_resolved(study, path)
    except OSError as error:
        raise Mistake(f"{path}: nothing can be written there: {error}") from None
    return Run(path.resolve())


def write_resolved(study: Study, path: Path) -> None:
    """The study with every default, at once."""
    (path / ".resolved.yaml").write_text(yaml.safe_dump(study.resolved(), sort_keys=False))
    sync(path / ".resolved.yaml")
    (path / ".resolved.yaml").rename(path / "resolved.yaml")


def _free(base: Path) -> Path:
    """Made here, so that nobody else finds it free."""
    base.parent.mkdir(parents=True, exist_ok=True)
    for path in _numbered(base):
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.name}-{number}")
        number += 1


def reopen(study: Study, out: Path | None) -> Run:
    """The folder to go on in: `out`, or the newest run of that study in `runs/`. Its study must be the same."""
    path = out or _newest(Path("runs") / study.name)
    if path is None or not os.path.isfile(path / "resolved.yaml"):
        raise Mistake(f"nothing to resume in {path or Path('runs') / study.name}: there is no run")
    if (path / "trials").is_dir():
        raise Mistake(f"{path} is a sweep, which is gone on with by `hjepa sweep`; a single run needs another --out")
    run = Run(path.resolve())
    changed = differences(run.resolved(), study.resolved())
    refused = [line for key, line in changed.items() if not f"{key}.".startswith(FREE)]
    if refused:
        said = "\n".join(f"  {line}" for line in refused)
        raise Mistake(
            f"{path} was begun with another study; give the same one and the same overrides, or another --out:\n{said}"
        )
    return run


def _newest(base: Path) -> Path | None:
    """The run that was begun last; any of them may have been removed."""
    made = {
        path: path / "resolved.yaml"
        for path in base.parent.glob("*")
        if re.fullmatch(rf"{re.escape(base.name)}(-\d+)?", path.name)
    }
    begun = {path: file.stat().st_mtime_ns for path, file in made.items() if file.is_file()}
    return max(begun, key=lambda path: begun[path], default=None)


def find(reference: str) -> Run:
    """A run by its path, or by its name in `runs/`."""
    for path in (Path(reference), Path("runs") / reference):
        if os.path.isfile(path / "resolved.yaml"):
            return Run(path.resolve())
    known = sorted(path.parent.name for path in Path("runs").glob("*/resolved.yaml"))
    raise Mistake(f"no run at {reference!r} (in runs/ there are: {listed(known)})")


def flattened(tree: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested mappings and lists by dotted path."""
    if isinstance(tree, dict | list) and tree:
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: leaf for part, item in pairs for key, leaf in flattened(item, f"{path}.{part}".lstrip(".")).items()}
    return {path: tree}


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    """Dotted key -> what it was and what it is."""
    was, now = flattened(before), flattened(after)
    keys = [key for key in {**was, **now} if was.get(key, "nothing") != now.get(key, "nothing")]
    return {key: f"{key}: was {was.get(key, 'nothing')!r}, now {now.get(key, 'nothing')!r}" for key in keys}


def versions(registry: Registry) -> dict[str, Any]:
    """What the run was made with."""
    return {
        "hjepa": metadata.version("hjepa"),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git": _revision(),
        "plugins": {plugin.name: plugin.version for plugin in registry.plugins if not plugin.error},
    }


def _revision() -> str:
    """Of the checkout that hjepa stands in; empty outside one."""
    here = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""
