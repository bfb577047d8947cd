"""Sweeps: every trial is done once and told once, whoever dies meanwhile."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from sweeps import RATES, REGISTRY, TINY, events, interrupted, opened, planned, quiet, states
from sweeps import done as done

from hjepa import runs, study, sweep, train
from hjepa.errors import Mistake
from hjepa.sweep import Sweep, Work, workers
from hjepa.sweep.claims import TRIALS

# --- what a sweep leaves ----------------------------------------------------------------------------------------------


def test_every_trial_is_a_run_that_is_told_with_what_is_known_of_it(done: Sweep):
    assert states(done) == ["COMPLETE"] * 3
    for trial in done.trials:
        run = done.folder / trial.user_attrs["run"]
        resolved = yaml.safe_load((run / "resolved.yaml").read_text())
        assert "search" not in resolved
        frame = resolved["levels"]["frame"]
        assert frame["prevention"][0]["std"] == trial.params["levels.frame.prevention.0.std"]
        assert frame["energy"]["name"] == {"near": "l1", "far": "l2"}[trial.params["levels.frame.energy"]]
        assert json.loads((run / "trial.json").read_text()) == {"number": trial.number, "params": trial.params}
        assert trial.value == trial.user_attrs["metrics"]["probe/where/r2"]
        assert trial.constraints == {"collapse/frame/std_ratio": -trial.user_attrs["metrics"]["collapse/frame/std_ratio"]}
        assert isinstance(trial.user_attrs["verdict.frame"], str)
        assert events(run, "started", "finished") == [("started", 0), ("finished", 6)]


def test_the_objective_is_measured_on_the_split_that_is_not_reported(done: Sweep):
    """What is tuned on the split `valid` can be reported on `test`."""
    folder = done.folder / "trials" / "0"
    plan = study.parse(runs.Run(folder).resolved(), REGISTRY)
    there = train.evaluate_run(plan, runs.Run(folder), REGISTRY, None, quiet, lambda result: None).metrics["probe/where/r2"]
    assert there != done.trials[0].value


def test_a_sweep_that_is_done_is_left_as_it_is(done: Sweep):
    before = (done.folder / "optuna.journal").read_bytes()
    assert not done.left(3)
    assert done.left(4)
    done.work(3, quiet)
    assert (done.folder / "optuna.journal").read_bytes() == before


def test_what_it_found_is_shown(done: Sweep):
    told = workers.told(done)
    assert told["trials"] == {"complete": 3}
    values = [row["values"]["probe/where/r2"] for row in told["best"]]
    assert values == sorted((trial.value for trial in done.trials), reverse=True)  # type: ignore[type-var]


def test_a_sweep_goes_on_with_the_same_study_alone(tmp_path: Path):
    opened(tmp_path / "one", planned(trials=1)).work(1, quiet)
    more = opened(tmp_path / "one", planned(trials=2))
    more.work(sweep.budget(more.plan, None), quiet)
    assert states(more) == ["COMPLETE"] * 2
    with pytest.raises(Mistake, match=r"train\.steps: was 6, now 7"):
        opened(tmp_path / "one", planned({"steps": 7}))
    with pytest.raises(Mistake, match=r"search\.space\.levels"):
        opened(tmp_path / "one", planned(space={"levels.frame.stride": {"low": 1, "high": 2}}))


def test_a_run_and_a_sweep_have_folders_of_their_own(done: Sweep, tmp_path: Path):
    with pytest.raises(Mistake, match="0 holds a run, and a sweep needs a folder of its own"):
        sweep.enter(planned(), done.folder / "trials" / "0", REGISTRY)
    with pytest.raises(Mistake, match="is a sweep, which is gone on with by `hjepa sweep`"):
        runs.reopen(done.plan, done.folder)


def test_what_a_sweep_does_not_say_is_asked_for():
    with pytest.raises(Mistake, match="how many trials"):
        sweep.budget(planned(), None)
    with pytest.raises(Mistake, match="needs the key `search`"):
        sweep.budget(study.parse(TINY, REGISTRY), 3)
    assert sweep.budget(planned(trials=4), None) == 4
    assert sweep.budget(planned(trials=4), 5) == 5


# --- how a trial ends -------------------------------------------------------------------------------------------------


def test_a_grid_is_walked_through_once(tmp_path: Path):
    space = {**RATES, "seed": {"low": 0, "high": 1, "step": 1}}
    one = opened(tmp_path / "grid", planned({"steps": 1}, sampler="grid", objective={"lr": "maximize"}, space=space))
    one.work(None, quiet)
    assert [(trial.params["train.optimizer.lr"], trial.params["seed"]) for trial in one.trials] == [
        *(("high", 0), ("high", 1), ("low", 0), ("low", 1))
    ]
    assert not one.left(None)


def test_a_trial_that_is_worse_is_pruned(tmp_path: Path):
    pruner = {"name": "median", "n_startup_trials": 1}
    plan = planned(sampler="grid", objective={"lr": "maximize"}, space=RATES, pruner=pruner, every=2)
    one = opened(tmp_path / "pruned", plan)
    one.work(None, quiet)
    assert states(one) == ["COMPLETE", "PRUNED"]
    assert [sorted(trial.intermediate_values) for trial in one.trials] == [[2, 4], [2]]
    assert events(one.folder / "trials" / "1", "finished") == [("finished", 2)]
    assert not one.left(None)


def test_a_probe_is_reported_from_the_split_valid(tmp_path: Path):
    one = opened(tmp_path / "probed", planned({"steps": 4}, pruner="median", every=2))
    one.work(1, quiet)
    (trial,) = one.trials
    assert list(trial.intermediate_values) == [2]
    longer = opened(tmp_path / "stopped", planned({"steps": 2}))
    longer.work(1, quiet)
    assert trial.intermediate_values[2] == longer.trials[0].value


def test_a_trial_that_collapses_is_ended_as_pruned(tmp_path: Path):
    plan = planned(
        {"steps": 10, "diagnose_every": 5, "alarm": "stop", "optimizer": {"name": "sgd", "lr": 0.05}},
        sampler="grid",
        space={
            "levels.frame.prevention": {"choice": {"none": []}},
            "train.optimizer.weight_decay": {"choice": {"none": 0.0, "deadly": 10.0}},
        },
    )
    one = opened(tmp_path / "collapse", plan)
    one.work(None, quiet)
    assert states(one) == ["COMPLETE", "PRUNED"]
    assert one.trials[1].user_attrs["ended"] == "collapsed"
    assert "collapse" in one.trials[1].user_attrs["verdict.frame"]


def test_a_trial_that_diverges_fails_and_counts(tmp_path: Path):
    space = {"train.optimizer.lr": {"choice": {"sane": 0.001, "mad": 1e30}}}
    one = opened(tmp_path / "mad", planned(sampler="grid", space=space))
    one.work(None, quiet)
    assert states(one) == ["COMPLETE", "FAIL"]
    assert "gradient is not finite" in one.trials[1].user_attrs["error"]


def test_a_trial_that_cannot_be_composed_fails_and_counts(tmp_path: Path):
    space = {"levels.frame.stride": {"choice": {"fits": 1, "odd": 6}}}
    one = opened(tmp_path / "odd", planned(sampler="grid", space=space))
    one.work(None, quiet)
    assert states(one) == ["COMPLETE", "FAIL"]
    assert "too few steps" in one.trials[1].user_attrs["error"]


def test_what_nothing_measures_ends_the_sweep(tmp_path: Path):
    one = opened(tmp_path / "unknown", planned({"steps": 1}, objective={"probe/where/r3": "maximize"}))
    with pytest.raises(Mistake, match=r"nothing measures 'probe/where/r3', did you mean 'probe/where/r2'"):
        one.work(5, quiet)
    assert states(one) == ["FAIL"]


def test_several_objectives_leave_a_front(tmp_path: Path):
    two = {"lr": "maximize", "probe/where/error": "minimize"}
    one = opened(tmp_path / "front", planned({"steps": 1}, sampler="grid", objective=two, space=RATES))
    one.work(None, quiet)
    assert [len(trial.values) for trial in one.trials] == [2, 2]
    assert {row["number"] for row in workers.told(one)["best"]} >= {0}


def test_the_best_trial_keeps_the_constraints(tmp_path: Path):
    plan = planned(
        {"steps": 1}, sampler="grid", objective={"lr": "maximize"}, space=RATES, constraints={"lr": {"at_most": 0.005}}
    )
    one = opened(tmp_path / "bound", plan)
    one.work(None, quiet)
    assert [row["number"] for row in workers.told(one)["best"]] == [1]


def test_a_trial_whose_constraint_is_no_number_does_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known = Work._known
    monkeypatch.setattr(Work, "_known", lambda self, metric: math.nan if metric == "gradient_norm" else known(self, metric))
    bound = {"gradient_norm": {"at_most": 1e9}}
    one = opened(tmp_path / "nan", planned({"steps": 1}, objective={"lr": "maximize"}, constraints=bound))
    one.work(1, quiet)
    assert states(one) == ["FAIL"]
    assert workers.told(one)["best"] == []


def test_a_trial_that_collapses_is_on_no_front(tmp_path: Path):
    """However low the energy of what has collapsed is."""
    two = {"collapse/frame/energy": "minimize", "collapse/frame/rank": "maximize"}
    train = {"steps": 4, "diagnose_every": 2, "alarm": "stop", "optimizer": {"name": "sgd", "lr": 0.05}}
    space = {"train.optimizer.weight_decay": {"choice": {"deadly": 19.0}}, "levels.frame.prevention": {"choice": {"none": []}}}
    one = opened(tmp_path / "both", planned(train, sampler="grid", objective=two, space=space))
    one.work(None, quiet)
    assert states(one) == ["PRUNED"]
    assert workers.told(one)["best"] == []


# --- workers that die -------------------------------------------------------------------------------------------------


def test_an_orphaned_trial_goes_on_from_its_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = opened(tmp_path / "killed")
    interrupted(one, monkeypatch)
    (orphan,) = one.trials
    assert orphan.state.name == "RUNNING"
    again = opened(tmp_path / "killed")
    again.work(2, quiet)
    assert states(again) == ["COMPLETE"] * 2
    assert again.trials[0].params == orphan.params
    assert ("resumed", 4) in events(again.folder / "trials" / "0", "resumed")
    whole = opened(tmp_path / "whole")
    whole.work(2, quiet)
    assert [trial.values for trial in again.trials] == [trial.values for trial in whole.trials], "not as if nothing had been"


def test_a_trial_that_somebody_works_on_is_left_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = opened(tmp_path / "shared")
    interrupted(one, monkeypatch)
    one.claims.drop(TRIALS)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 2); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(one.folder / ".claims")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        claimed = one.claim(2)
        assert claimed is not None
        assert claimed.number == 1
        other.kill()
    adopted = one.claim(2)
    assert adopted is not None
    assert adopted.number == 0, "a killed process holds on to its trial"


def test_a_trial_that_kills_every_worker_fails_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = opened(tmp_path / "deadly")
    for _ in range(sweep.TAKEN_UP + 1):
        interrupted(one, monkeypatch)
    one.work(2, quiet)
    assert states(one) == ["FAIL", "COMPLETE"]
    assert one.trials[0].user_attrs["error"] == "its worker was killed 4 times without getting further"


def test_a_trial_that_gets_further_each_time_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = opened(tmp_path / "preempted", planned({"checkpoint_every": 1}))
    for step in range(1, sweep.TAKEN_UP + 3):
        interrupted(one, monkeypatch, at=step)
    one.work(1, quiet)
    assert states(one) == ["COMPLETE"]
    assert len(events(one.folder / "trials" / "0", "resumed")) == sweep.TAKEN_UP + 2


def test_a_worker_does_not_outlive_who_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = opened(tmp_path / "orphans")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        one.work(2, quiet)
    assert states(one) == ["RUNNING"]
    assert events(one.folder / "trials" / "0", "finished") == [("finished", 1)]


def test_a_trial_that_was_told_meanwhile_is_not_taken_up(done: Sweep):
    trial = done.trials[0]
    assert done._adopted(trial) is None
    assert "taken_up" not in done.trials[0].user_attrs


# --- many -------------------------------------------------------------------------------------------------------------


def test_ten_thousand_trials_list_in_seconds(done: Sweep, tmp_path: Path):
    sweep.enter(done.plan, tmp_path / "many", REGISTRY)
    lines = (done.folder / "optuna.journal").read_text().replace('"done"', '"many"').splitlines()
    head = [line for line in lines if "trial_id" not in line and '"op_code":4' not in line]
    trial = [line for line in lines if '"trial_id":0,' in line]
    begun = next(line for line in lines if '"op_code":4' in line)
    with (tmp_path / "many" / "optuna.journal").open("w") as file:
        print(*head, sep="\n", file=file)
        for number in range(10_000):
            print(begun, *(line.replace('"trial_id":0,', f'"trial_id":{number},') for line in trial), sep="\n", file=file)
    start = time.monotonic()
    many = Sweep(tmp_path / "many", REGISTRY)
    assert not many.left(10_000)
    told = workers.told(many)
    assert time.monotonic() - start < 20, "more than seconds"
    assert told["trials"] == {"complete": 10_000}
