"""Many trainings of one study, each with other values at the keys that it searches: Optuna asks, `train` answers.

    runs/<study>-sweep/
        study.yaml, resolved.yaml, versions.json     the study, as for a run
        optuna.journal                               the trials, unless --storage names a database
        trials/<number>/                             a run each, with what was chosen for it in trial.json

A worker is a process of its own, `python -m hjepa.sweep FOLDER`, which takes one trial after the other until there are as many as
were asked for. It trains what nobody works on any more before it asks for something new: a trial whose worker was killed is gone
on with, under its own number, with its own parameters, from its own checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hjepa import registry, runs, search
from hjepa.errors import Mistake, listed, nearest
from hjepa.study import Study, parse
from hjepa.sweep import claims, strategies
from hjepa.sweep.claims import ASKING, TRIALS, claimed
from hjepa.train import Diverged, Halt, Result, Trainer, interruptible, train

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

DONE, FAILED, MISTAKE, STOPPED = 0, 1, 2, 3
STORAGE = "HJEPA_SWEEP_STORAGE"
"""How a worker is told the URL of the database: a command line could be read by everybody on the machine."""
TAKEN_UP = 3
"""How often a trial is gone on with from the same step before it counts as what kills its workers."""
NEW = ("train.workers.", "train.device.", "train.keep.", "train.checkpoint_every.", "train.track.", "search.trials.")
"""What may differ when a sweep is continued."""

Say = Callable[[str], None]


def enter(study: Study, out: Path | None, plugins: registry.Registry) -> Path:
    """The folder of a sweep; a new one, or that of the same sweep, which is then continued."""
    folder = out or Path("runs") / f"{study.name}-sweep"
    if runs.Run(folder).journal.is_file():
        raise Mistake(f"{folder} holds a run, and a sweep needs a folder of its own: give another --out")
    if not (folder / "resolved.yaml").is_file():
        runs.create(study, folder, plugins)
    else:
        refuse_other(f"{folder} was begun", runs.Run(folder).resolved(), study.resolved())
        runs.write_resolved(study, folder)
    (folder / "trials").mkdir(exist_ok=True)  # by which others know a sweep
    return folder.resolve()


def budget(study: Study, trials: int | None) -> int | None:
    """How many trials there shall be in all; None where the grid says so."""
    if study.search is None:
        raise Mistake(f"{study.name} searches nothing: a sweep needs the key `search`, with an objective and a space")
    wanted = trials or study.search.trials
    if wanted is None and study.search.sampler.name != "grid":
        raise Mistake("how many trials? Give --trials N, or search.trials")
    return wanted


def refuse_other(what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Mistake where a sweep would go on with another study."""
    changed = [line for key, line in runs.differences(before, now).items() if not f"{key}.".startswith(NEW)]
    if changed:
        said = "\n".join(f"  {line}" for line in changed)
        raise Mistake(f"{what} with another study; give the same one and the same overrides, or another --out:\n{said}")


class Sweep:
    """The trials of a sweep, opened by a process that works on them or looks at them."""

    def __init__(self, folder: Path, plugins: registry.Registry, url: str | None = None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self.folder, self.plugins, self.parent = folder, plugins, os.getppid()
        self.resolved = runs.Run(folder).resolved()
        self.plan = parse(self.resolved, plugins, name=folder.name)
        self.plan.complain()
        assert self.plan.search is not None
        self.search, self.base = self.plan.search, search.base_of(self.plan)
        storage, self.claims = claims.opened(folder, url)
        with claimed(self.claims, ASKING):
            self.study = optuna.create_study(
                storage=storage,
                study_name=folder.name,
                directions=list(self.search.objective.values()),
                pruner=strategies.pruner(self.search, self.plan.train.steps),
                load_if_exists=True,
            )
            known = self.study.user_attrs.get("resolved")
            refuse_other(f"the sweep {folder.name!r} of this database was begun", known or self.resolved, self.resolved)
            if known is None:
                self.study.set_user_attr("resolved", self.resolved)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All of them, as they stand."""
        return self.study.get_trials(deepcopy=False)

    def left(self, wanted: int | None) -> bool:
        """Whether there is anything to train."""
        trials = self.trials
        return any(not trial.state.is_finished() for trial in trials) or self._more(len(trials), wanted)

    def _more(self, have: int, wanted: int | None) -> bool:
        return (wanted is None or have < wanted) and (self.search.sampler.name != "grid" or self._combination(have) is not None)

    def _combination(self, number: int) -> dict[str, Any] | None:
        return next(islice(search.combinations(self.search.space), number, None), None)

    # --- one trial after the other ---

    def work(self, wanted: int | None, say: Say) -> None:
        """Trains until there are as many trials as are wanted, and none that nobody works on."""
        while (trial := self.claim(wanted)) is not None:
            Work(self, trial, say).do()
            self.claims.drop(TRIALS + trial.number)

    def claim(self, wanted: int | None) -> Trial | None:
        """A trial that is ours alone: one that has lost its worker, else a new one; none where nothing is left."""
        with claimed(self.claims, ASKING):
            trials = self.trials
            for trial in trials:
                if trial.state.name == "RUNNING" and self.claims.take(TRIALS + trial.number):
                    if (adopted := self._adopted(trial)) is not None:
                        return adopted
                    self.claims.drop(TRIALS + trial.number)
            waiting = any(trial.state.name == "WAITING" for trial in trials)
            return self._asked(len(trials), waiting) if waiting or self._more(len(trials), wanted) else None

    def _adopted(self, trial: FrozenTrial) -> Trial | None:
        """A trial of a worker that is gone; none where that one had finished it since, or where it ends all its workers."""
        import optuna

        self.study.sampler = strategies.sampler(self.search, self.plan.seed, trial.number)
        mine = optuna.trial.Trial(self.study, trial._trial_id)
        if self.study._storage.get_trial(trial._trial_id).state.is_finished():
            return None
        step, (before, times) = self._furthest(trial.number), mine.user_attrs.get("taken_up", (-1, 0))
        times = times + 1 if step == before else 1
        if times > TAKEN_UP:
            mine.set_user_attr("error", f"its worker was killed {times} times without getting further")
            self.study.tell(mine, state=optuna.trial.TrialState.FAIL)
            return None
        mine.set_user_attr("taken_up", (step, times))
        return mine

    def _furthest(self, number: int) -> int:
        """The step of a trial's newest checkpoint; -1 where there is none."""
        saved = (self.folder / "trials" / str(number) / "checkpoints").glob("step-*")
        return max((int(path.name.removeprefix("step-")) for path in saved if path.name[5:].isdecimal()), default=-1)

    def _asked(self, number: int, waiting: bool) -> Trial:
        self.study.sampler = strategies.sampler(self.search, self.plan.seed, number)
        if self.search.sampler.name == "grid" and not waiting:
            self.study.enqueue_trial(self._combination(number) or {})
        trial = self.study.ask()
        self.claims.wait(TRIALS + trial.number)
        return trial


class Work:
    """One trial: asked for its parameters, trained in its folder, reported, told."""

    def __init__(self, sweep: Sweep, trial: Trial, say: Say) -> None:
        self.sweep, self.trial, self.search = sweep, trial, sweep.search
        self.say: Say = lambda message: say(f"trial {trial.number}: {message}")
        self.latest: dict[str, float] = {}
        self.verdicts: dict[str, str] = {}
        self.reported = max(trial._cached_frozen_trial.intermediate_values, default=0)
        self.every = strategies.every(self.search, sweep.plan.train.steps)

    def do(self) -> None:
        """Trains it and tells how it went. What the machine fails at is raised, and leaves the trial to be gone on with."""
        from optuna.exceptions import StorageInternalError

        try:
            result = self._trained()
            state, values = self._ended(result)
        except (OSError, torch.AcceleratorError, StorageInternalError, runs.Busy, NoSuchMetric, KeyboardInterrupt) as error:
            if isinstance(error, NoSuchMetric):
                self._tell("FAIL", None, {"error": str(error)})
            raise
        except Exception as error:
            said = str(error) if isinstance(error, Mistake) else f"{type(error).__name__}: {error}"
            if not isinstance(error, Diverged | Mistake):
                self.say(traceback.format_exc())
            state, values = "FAIL", None
            self.trial.set_user_attr("error", said)
            self.say(said)
        if state == "RUNNING":
            raise KeyboardInterrupt
        self._tell(state, values, {})

    def _trained(self) -> Result:
        path = self.sweep.folder / "trials" / str(self.trial.number)
        values = search.filled(self.search.space, self._pick)
        plan = parse(search.applied(self.sweep.base, values), self.sweep.plugins, name=path.name)
        plan.complain()
        resume = (path / "resolved.yaml").is_file()
        if not resume:
            path.mkdir(parents=True, exist_ok=True)
            (path / "trial.json").write_text(json.dumps({"number": self.trial.number, "params": self.trial.params}, indent=1))
        run = runs.reopen(plan, path) if resume else runs.create(plan, path, self.sweep.plugins)
        return train(plan, run, self.sweep.plugins, resume, self.say, self._watch, lambda result: None, held="valid")

    def _pick(self, name: str, node: search.Node) -> Any:
        """What the sampler proposes; what it has proposed before, where the trial is gone on with."""
        if isinstance(node, search.Choice):
            return self.trial.suggest_categorical(name, list(node.choice))
        if node.whole:
            return self.trial.suggest_int(name, node.low, node.high, log=node.log, step=node.step or 1)
        return self.trial.suggest_float(name, node.low, node.high, log=node.log, step=node.step)

    # --- while it trains ---

    def _watch(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """At every record: what is known is kept, and now and then reported. A worker does not outlive who started it."""
        self.latest |= {**trainer.look.metrics, **metrics}
        self.verdicts = trainer.look.verdicts
        if os.getppid() != self.sweep.parent:
            signal.raise_signal(signal.SIGTERM)
        last = trainer.done == trainer.study.train.steps
        if self.search.pruner.name != "none" and not last and trainer.done // self.every > self.reported // self.every:
            self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        (metric,) = self.search.objective
        if metric.startswith("probe/"):
            scores, _ = trainer.probed(metric.split("/")[1], held="valid", untrained=False)
            self.latest |= scores
        self.trial.report(self._known(metric), step=trainer.done)
        self.reported = trainer.done
        if self.trial.should_prune():
            raise Halt("pruned")

    def _known(self, metric: str) -> float:
        if metric not in self.latest:
            near = nearest(metric, self.latest)
            raise NoSuchMetric(f"search: nothing measures {metric!r}{near} (there are: {listed(sorted(self.latest))})")
        return self.latest[metric]

    # --- how it ended ---

    def _ended(self, result: Result) -> tuple[str, list[float] | None]:
        """The state of the trial, and its values where it has some."""
        self.latest |= result.metrics
        self.verdicts = result.verdicts or self.verdicts
        if result.outcome == "stopped":
            return "RUNNING", None
        if result.outcome != "done":
            self.trial.set_user_attr("ended", result.outcome)
            return "PRUNED", None
        values = [self._known(metric) for metric in self.search.metrics]
        if not all(math.isfinite(value) for value in values):  # a constraint too: Optuna takes one that is not told for kept
            self.trial.set_user_attr("error", f"{listed(self.search.metrics)}: {listed(map(str, values))}")
            return "FAIL", None
        return "COMPLETE", values[: len(self.search.objective)]

    def _tell(self, state: str, values: list[float] | None, facts: Mapping[str, Any]) -> None:
        """Everything that is known of the trial, and that it has ended."""
        from optuna.trial import TrialState

        verdicts = {f"verdict.{level}": words for level, words in self.verdicts.items()}
        metrics = {name: value for name, value in self.latest.items() if math.isfinite(value)}
        for name, value in {**facts, **verdicts, "metrics": metrics, "run": f"trials/{self.trial.number}"}.items():
            self.trial.set_user_attr(name, value)
        for metric, bound in self.search.constraints.items():
            if metric in metrics:
                self.trial.set_constraint(metric, bound.excess(metrics[metric]))
        self.sweep.study.tell(self.trial, values, TrialState[state])
        shown = " ".join(f"{metric} {value:.4g}" for metric, value in zip(self.search.objective, values or (), strict=False))
        self.say("; ".join([state.lower(), *[shown] * bool(shown), *(f"{k}: {words}" for k, words in self.verdicts.items())]))


class NoSuchMetric(Mistake):
    """What the search asks for is measured by nothing: no trial can have it."""


# --- a worker ---------------------------------------------------------------------------------------------------------


def main() -> int:
    """The command line of a worker; how it ends, as for every command."""
    parser = argparse.ArgumentParser(prog="hjepa.sweep")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--no-plugin", action="append", default=[])
    told = parser.parse_args()
    try:
        with interruptible():
            Sweep(told.folder, registry.load(told.no_plugin), os.environ.get(STORAGE)).work(told.trials, _say)
    except Mistake as error:
        _say(str(error))
        return MISTAKE
    except (OSError, torch.AcceleratorError) as error:
        _say(f"a worker ends, and the same command goes on with its trial: {type(error).__name__}: {error}")
        return FAILED
    except KeyboardInterrupt:
        return STOPPED
    return DONE


def _say(message: str) -> None:
    os.write(sys.stderr.fileno(), f"{message}\n".encode())  # at once, so that the lines of several workers stay apart
