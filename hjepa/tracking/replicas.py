"""A sweep on the MLflow server: one parent run, a child a trial, as it happens.

A sweep is a folder with `resolved.yaml` and, in `trials/`, one run folder a trial, whose `trial.json` holds under `params` what
the sampler chose. The parent has the whole study; a child shows what varies, and its seed. At the end the parent gets what
`hjepa compare` draws.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from hjepa.errors import Mistake
from hjepa.tracking.replica import About, Replica, Server, allowed, parameters, read_json
from hjepa.verdicts import FINE, worst

_log = logging.getLogger("hjepa.tracking")


def is_sweep(folder: Path) -> bool:
    """Whether the folder is a sweep's."""
    return (folder / "trials").is_dir()


def trials(sweep: Path) -> list[Path]:
    """The folders of the trials that have begun, in their order."""
    folders = [path for path in (sweep / "trials").glob("*") if path.is_dir()]
    return sorted(folders, key=lambda path: (len(path.name), path.name))


class Replicas:
    """A sweep and its trials on the server, brought up to what the folder says."""

    def __init__(self, sweep: Path, server: Server) -> None:
        self._sweep, self._server = sweep, server
        self._parent = Replica(sweep, server, About(tags={"hjepa.sweep": sweep.name}, ends="done"))
        self._children: dict[str, Replica] = {}
        self._settled: set[str] = set()

    def send(self, over: bool) -> None:
        """Sends what the server lacks. `over`: nobody works at the sweep any more."""
        self._parent.send(over=False)
        for trial in self._open():
            try:
                self._send_trial(trial, over)
            except Mistake as damage:
                _log.warning("trial %s is passed over: %s", trial.name, damage)
                self._settled.add(trial.name)
        if over:
            self._parent.say(self._draw())
            self._parent.send(over=True)

    def _open(self) -> Iterator[Path]:
        """The trials of which the server may lack something."""
        for trial in trials(self._sweep):
            if trial.name in self._settled or not (trial / "resolved.yaml").exists():
                continue
            if trial.name not in self._children and _has_all(trial):
                self._settled.add(trial.name)
                continue
            yield trial

    def _send_trial(self, trial: Path, over: bool) -> None:
        if trial.name not in self._children:
            self._children[trial.name] = Replica(trial, self._server, self._about(trial))
        child = self._children[trial.name]
        child.send(over=False)
        if child.ended or over:
            self._name_trouble(child, trial)
            child.send(over=True)
            del self._children[trial.name]
            self._settled.add(trial.name)

    def _name_trouble(self, child: Replica, trial: Path) -> None:
        """MLflow's lists and legends show names and no tags: what became of a trial that is not healthy is in its name."""
        kind = worst(child.verdicts)
        if kind not in FINE:
            self._server.client.update_run(child.id, name=f"{self._sweep.name}/{trial.name}: {kind}")

    def _about(self, trial: Path) -> About:
        tags = {"mlflow.parentRunId": self._parent.id, "hjepa.sweep": self._sweep.name, "hjepa.trial": trial.name}
        return About(f"{self._sweep.name}/{trial.name}", tags, chosen(trial))

    def _draw(self) -> str:
        """What `hjepa compare` shows of the sweep, into its folder, and says first; a sweep that cannot be drawn goes without."""
        from hjepa import compare

        try:
            told = compare.gather([str(self._sweep)])
            compare.write(told, compare.place_of(told))
        except Exception as problem:
            _log.warning("%s is sent without its figures: %s", self._sweep, problem)
            return ""
        return f"{told.sentence}. See `compare/index.html` among the artifacts."


def _has_all(trial: Path) -> bool:
    """Whether a mirror before this one sent the trial to its end, and nobody has gone on with it."""
    note = read_json(trial / "mlflow.json")
    journal = trial / "journal.jsonl"
    return note.get("pending") is False and journal.exists() and note.get("bytes") == journal.stat().st_size


def chosen(trial: Path) -> dict[str, str]:
    """What the sampler chose for a trial, and its seed."""
    params = read_json(trial / "trial.json").get("params", {})
    shown = {allowed(key): value if isinstance(value, str) else json.dumps(value) for key, value in params.items()}
    return {**{key: value for key, value in parameters(trial).items() if key == "seed"}, **shown}
