"""What a person names to be compared: folders of runs and sweeps, names in `runs/`, ids of MLflow, conditions in its words."""

from __future__ import annotations

from pathlib import Path

from hjepa.compare import served
from hjepa.errors import Mistake, listed
from hjepa.planning import kept
from hjepa.tracking.replica import read_json
from hjepa.tracking.replicas import is_sweep


def folders_of(reference: str, root: Path) -> list[Path]:
    """The folders that one reference names. Raises `Mistake` where it names none."""
    for path in (Path(reference), root / reference):
        if is_sweep(path) or _has_run(path) or _has_plans(path):
            return [path.resolve()]
    if served.looks_like_id(reference):
        return [served.with_id(reference, root)]
    if served.looks_like_filter(reference):
        return served.fitting(reference, root)
    within = sorted(Path(reference).glob("*"))
    # what a run did elsewhere stands in for it where nothing else is: beside the run itself it would be the same run twice
    found = [path for path in within if is_sweep(path) or _has_run(path)] or [path for path in within if _has_plans(path)]
    if found:
        return [path.resolve() for path in found]
    known = sorted(path.name for path in root.glob("*") if is_sweep(path) or _has_run(path))
    raise Mistake(f"no run or sweep at {reference!r} (in {root}/ there are: {listed(known)})")


def run_of(folder: Path) -> Path:
    """The run whose acting alone lies in a folder (`hjepa plan RUN --out`); else the folder itself. Raises `Mistake` where it is gone."""
    if _has_run(folder) or not _has_plans(folder):
        return folder
    run = Path(str(read_json(folder / kept.FILE).get("run", "")))
    if not _has_run(run):
        raise Mistake(f"{folder}: what acted there, {str(run)!r}, is no run, or is no longer there")
    return run


def _has_run(path: Path) -> bool:
    return (path / "resolved.yaml").is_file() or (path / "journal.jsonl").is_file()


def _has_plans(path: Path) -> bool:
    return (path / kept.FILE).is_file()
