"""Who starts a sweep: the processes that work on it, and how its trials stand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hjepa.sweep import DONE, FAILED, MISTAKE, STOPPED, STORAGE, Say, Sweep
from hjepa.train import interruptible

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from rich.console import Console

RESTARTS = 10
"""How often the place of a worker is filled again."""
SHOWN = 10
"""Trials in the table at the end."""


class Crew:
    """So many processes that work on one sweep; who is killed is replaced. They end with whoever runs them."""

    def __init__(self, sweep: Sweep, wanted: int | None, count: int, url: str | None, blocked: Sequence[str], say: Say) -> None:
        self.sweep, self.wanted, self.say = sweep, wanted, say
        self.command = [sys.executable, "-W", "ignore", "-m", "hjepa.sweep", str(sweep.folder)]
        self.command += [] if wanted is None else ["--trials", str(wanted)]
        self.command += [word for name in blocked for word in ("--no-plugin", name)]
        threads = str(max(1, torch.get_num_threads() // count))
        self.environment = {"OMP_NUM_THREADS": threads, **os.environ} | ({} if url is None else {STORAGE: url})
        self.codes: list[int] = []
        self.restarts = RESTARTS * count
        self.processes: list[subprocess.Popen[bytes]] = []
        self.count = count

    def run(self) -> int:
        """Until nothing is left to train, or somebody stops it: how it ended, as for every command."""
        try:
            with interruptible():
                self.processes = [self._started() for _ in range(self.count)]
                while self.processes and MISTAKE not in self.codes:
                    time.sleep(0.05)
                    self._replace()
        except KeyboardInterrupt:
            self._stop()
            return STOPPED
        self._stop()
        if MISTAKE in self.codes:
            return MISTAKE
        if not self.sweep.left(self.wanted):
            return DONE
        return STOPPED if STOPPED in self.codes else FAILED

    def _started(self) -> subprocess.Popen[bytes]:
        # a session of its own keeps Ctrl-C from it: it is told to stop, once
        return subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=2, env=self.environment, start_new_session=True)

    def _replace(self) -> None:
        """Who has ended goes; somebody else takes the place of who was killed."""
        for process in [process for process in self.processes if process.poll() is not None]:
            self.processes.remove(process)
            self.codes.append(process.returncode)
            if process.returncode < 0 and self.restarts:
                self.restarts -= 1
                name = signal.Signals(-process.returncode).name
                self.say(f"worker {process.pid} was killed ({name}); another goes on with its trial")
                self.processes.append(self._started())

    def _stop(self) -> None:
        """Everybody saves a checkpoint and ends; if that is interrupted, at once."""
        try:
            with interruptible():
                for process in self.processes:
                    process.terminate()
                for process in self.processes:
                    process.wait()
        finally:
            for process in self.processes:
                process.kill()


# --- how it stands ----------------------------------------------------------------------------------------------------


def best(sweep: Sweep) -> list[FrozenTrial]:
    """The best trials that keep the constraints, best first; of several objectives, those that no other is better than."""
    if len(sweep.search.objective) > 1:
        return sweep.study.best_trials
    (direction,) = sweep.search.objective.values()
    ended = [trial for trial in sweep.trials if trial.state.name == "COMPLETE" and _keeps(trial)]
    return sorted(ended, key=lambda trial: trial.value or 0.0, reverse=direction == "maximize")


def _keeps(trial: FrozenTrial) -> bool:
    return all(excess <= 0 for excess in trial.constraints.values())


def told(sweep: Sweep) -> dict[str, Any]:
    """How the sweep stands, as one object."""
    states = Counter(trial.state.name.lower() for trial in sweep.trials)
    return {"sweep": str(sweep.folder), "trials": dict(states), "best": [_row(sweep, trial) for trial in best(sweep)[:SHOWN]]}


def _row(sweep: Sweep, trial: FrozenTrial) -> dict[str, Any]:
    metrics = trial.user_attrs.get("metrics", {})
    return {
        "number": trial.number,
        "run": trial.user_attrs["run"],
        "values": dict(zip(sweep.search.objective, trial.values, strict=True)),
        "constraints": {metric: metrics.get(metric) for metric in sweep.search.constraints},
        "params": trial.params,
        "verdicts": {
            key.removeprefix("verdict."): words for key, words in trial.user_attrs.items() if key.startswith("verdict.")
        },
    }


def table(standing: dict[str, Any], console: Console) -> None:
    """Prints the best trials, and how many there are of each kind."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = standing["best"]
    if rows:
        asked = [*rows[0]["values"], *rows[0]["constraints"]]
        made = Table("trial", *asked, "parameters", "verdicts", box=SIMPLE_HEAD, header_style="dim", pad_edge=False)
        for row in rows:
            measured = row["values"] | row["constraints"]
            parameters = "\n".join(f"{key}: {_shown(value)}" for key, value in row["params"].items())
            verdicts = "\n".join(f"{level}: {words}" for level, words in row["verdicts"].items())
            made.add_row(str(row["number"]), *(_shown(measured[metric]) for metric in asked), parameters, verdicts)
        console.print(made, markup=False)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(standing["trials"].items()))
    console.print(f"{standing['sweep']}: {counts or 'no trials'}", highlight=False, markup=False, soft_wrap=True)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
