"""A run as a comparison sees it: read from the files of its folder alone, whatever state they are in.

A damaged line of a journal is passed over and counted, a missing file leaves a gap: nothing here raises over a run that is still
trained, was killed, or lost something.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hjepa.runs import FREE
from hjepa.tracking.replica import read_json
from hjepa.verdicts import worst

TAIL = 40_000
"""Bytes at the end of a journal that hold the last record of everything, as a rule."""
_FREE = tuple(key for key in FREE if key != "probes.")

ABSENT = ""
"""What is shown of a key that a study lacks."""

Curve = tuple[list[int], list[float]]
"""Steps and values."""


@dataclass
class Digest:
    """What is known of one run."""

    path: Path
    name: str
    state: str = "unfinished"
    """How it ended: done, stopped, failed, pruned...; `unfinished` while it is trained, or where it was killed."""
    step: int = 0
    verdicts: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """The last of each."""
    points: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    """By metric, at each step."""
    spectra: dict[str, list[float]] = field(default_factory=dict)
    alarms: dict[str, str] = field(default_factory=dict)
    """By level: when it collapsed, and why."""
    damaged: int = 0
    """Lines of the journal that cannot be read."""
    acted: Path | None = None
    """The folder of what came of acting."""

    def curve(self, metric: str) -> Curve:
        """By step; what was recorded last counts."""
        points = self.points.get(metric, {})
        return sorted(points), [points[step] for step in sorted(points)]

    @property
    def kind(self) -> str:
        """The worst that is said of any level, by the first words of its verdict."""
        return worst(self.verdicts.values())

    @cached_property
    def params(self) -> dict[str, Any]:
        """What a sampler chose for this run, where it is a sweep's trial."""
        found = read_json(self.path / "trial.json").get("params")
        return found if isinstance(found, dict) else {}

    @cached_property
    def study(self) -> dict[str, Any]:
        """The run's study with every default, or nothing."""
        import yaml

        try:
            found = yaml.load((self.path / "resolved.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def mirrored(self) -> dict[str, Any]:
        """Where MLflow has the run: `mlflow_run_id`, `experiment_id`, `uri`; empty where it has none."""
        note = read_json(self.path / "mlflow.json")
        return note if "mlflow_run_id" in note else {}

    def _take(self, entry: Mapping[str, Any]) -> None:
        if "metrics" in entry:
            self.step = max(self.step, entry["step"])
            for name, value in entry["metrics"].items():
                number = value if isinstance(value, int | float) else float(value["$float"])
                self.metrics[name] = self.points[name][entry["step"]] = number
        elif entry["event"] == "finished":
            self.state = entry["outcome"]
        elif entry["event"] in ("started", "resumed"):
            self.state = "unfinished"
        elif entry["event"] == "alarm":
            self.alarms[entry["level"]] = f"step {entry['step']}: {entry['words']}"
        elif entry["event"] == "verdicts":
            self.verdicts = {level: str(words) for level, words in entry["verdicts"].items()}
            self.spectra = entry.get("spectra", {})


def digest(path: Path, name: str, whole: bool = True) -> Digest:
    """The run in the folder `path`. Not `whole`: from the end of its journal, where that says enough: no curves, but quick."""
    if not whole:
        found = _told(path, name, _end(path / "journal.jsonl"))
        if found.verdicts and not found.damaged:
            return found
    return _told(path, name, _lines(path / "journal.jsonl"))


def _told(path: Path, name: str, lines: Iterable[bytes]) -> Digest:
    found = Digest(path, name)
    for line in lines:
        try:
            found._take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            found.damaged += 1
    return found


def _lines(journal: Path) -> Iterator[bytes]:
    """Every line that is whole."""
    try:
        with journal.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
    except OSError:
        return


def _end(journal: Path) -> list[bytes]:
    """Of the last lines that are whole: the newest record of everything, and the events."""
    try:
        with journal.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines(keepends=True)
    except OSError:
        return []
    whole = [line for line in lines[size > TAIL :] if line.endswith(b"\n")]
    metrics = [line for line in whole if not line.startswith(b'{"event"')]
    looks = [line for line in metrics[:-2] if b'"collapse/' in line]
    return [*looks[-1:], *metrics[-2:], *(line for line in whole if line.startswith(b'{"event"'))]


def short_names(paths: Sequence[Path]) -> list[str]:
    """For each folder, as much of the end of its path as tells it from the others; `trials` goes without saying."""
    parts = [[part for part in path.parts if part != "trials"] for path in paths]
    names: list[str] = [""] * len(paths)
    open_, length = list(range(len(paths))), 1
    while open_:
        suffixes = {place: "/".join(parts[place][-length:]) for place in open_}
        counts = Counter(suffixes.values())
        for place, suffix in suffixes.items():
            names[place] = suffix
        open_ = [place for place in open_ if counts[suffixes[place]] > 1 and length < len(parts[place])]
        length += 1
    return names


# --- what differs -----------------------------------------------------------------------------------------------------


def differences(runs: Sequence[Digest]) -> dict[str, list[str]]:
    """Short key -> what each run has there, for the keys of their studies that differ and that training depends on.

    Trials of a sweep say what the sampler chose; the studies of others are laid side by side, down to where they part.
    """
    if runs and all(run.params for run in runs):
        keys = list(dict.fromkeys(key for run in runs for key in run.params))
        found = {key: [_words(run.params.get(key, "")) for run in runs] for key in keys}
    else:
        known = [place for place, run in enumerate(runs) if run.study]
        parted = dict(_parting([runs[place].study for place in known]))
        found = {}
        for key, values in parted.items():
            if not f"{key}.".startswith(_FREE):
                words = dict(zip(known, _told_apart(values), strict=True))
                found[key] = [words.get(place, "") for place in range(len(runs))]
    return {short: found[key] for key, short in short_keys(list(found)).items()}


def _parting(trees: Sequence[Any], path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The highest places at which the trees are not built alike, and the leaves that differ."""
    if all(tree == trees[0] for tree in trees):
        return
    keys = _common_keys(trees)
    for key in keys:
        yield from _parting([_child(tree, key) for tree in trees], f"{path}.{key}".lstrip("."))
    if not keys:
        yield path, list(trees)


def _common_keys(trees: Sequence[Any]) -> list[Any]:
    """The keys below trees that are of one kind: mappings with the same name, or lists of the same length."""
    if trees and all(isinstance(tree, dict) for tree in trees) and len({str(tree.get("name")) for tree in trees}) == 1:
        return list(dict.fromkeys(key for tree in trees for key in tree))
    if all(isinstance(tree, list) for tree in trees) and len({len(tree) for tree in trees}) == 1:
        return list(range(len(trees[0])))
    return []


def _child(tree: Any, key: Any) -> Any:
    return tree.get(key, ABSENT) if isinstance(tree, dict) else tree[key]


def _told_apart(values: Sequence[Any]) -> list[str]:
    """Components by their names where those differ, else with the options that differ too."""
    components = [one for value in values for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]
    options = {(str(one.get("name")), key, str(item)) for one in components for key, item in one.items() if key != "name"}
    many = Counter((name, key) for name, key, _ in options)
    briefly = [_words(value, ()) for value in values]
    fully = [_words(value, [option for option, count in many.items() if count > 1]) for value in values]
    return briefly if len(set(briefly)) == len(set(fully)) else fully


def _words(value: Any, options: Sequence[tuple[str, str]] = ()) -> str:
    """A value in few words; of components, the name and those of the `options` (name, key)."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " + ".join(_words(item, options) for item in value) or "none"
    if isinstance(value, dict):
        name = str(value.get("name"))
        told = ", ".join(f"{key}={_words(item, options)}" for key, item in value.items() if (name, key) in options)
        return name + (f"({told})" if told else "")
    return str(value)


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key -> as much of its end as tells it from the others, and that begins with a word."""
    short: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        fits = (end for end in ends if not end[0].isdigit() and not any(f".{other}".endswith(f".{end}") for other in others))
        short[key] = next(fits, key)
    return short
