"""Any torch optimizer by name; groups by pattern; what is scheduled follows the step; what is wrong is said with the nearest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hjepa import optimizers, registry, stack, study
from hjepa.errors import StudyMistake

BASE = {
    "data": {"video": {"name": "moving_digits", "frames": 4, "size": 16, "digit_size": 8, "batch": 2}},
    "levels": {
        "frame": {
            "name": "forecast",
            "encoder": {"name": "conv", "width": 8, "base": 4},
            "predictor": {"name": "causal", "depth": 1, "heads": 2, "width": 8},
            "energy": "l2",
        }
    },
}


@pytest.fixture(scope="module")
def installed() -> registry.Registry:
    return registry.load()


@pytest.fixture(scope="module")
def plan(installed: registry.Registry):
    def made(**train: Any) -> study.Study:
        read = study.parse(BASE | {"train": train}, installed)
        read.problems += optimizers.problems(read)
        return read

    return made


class Small(nn.Module):
    """Weights and biases with names that patterns can pick."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.still = nn.Linear(3, 3).requires_grad_(False)


def told(made: optimizers.Scheduled, module: nn.Module) -> dict[str, dict[str, Any]]:
    """The group of each parameter by its name."""
    owners = {id(p): group for group in made.optimizer.param_groups for p in group["params"]}
    return {name: owners[id(p)] for name, p in module.named_parameters() if id(p) in owners}


def refused(plan: Any, **train: Any) -> dict[str, str]:
    return {problem.path: problem.message for problem in plan(**train).problems}


# --- what there is ----------------------------------------------------------------------------------------------------


def test_the_optimizers_are_torch_s_own():
    found = optimizers.available()
    assert {"adamw", "sgd", "adam", "rmsprop", "adagrad", "nadam"} <= set(found)
    assert not {"optimizer", "lbfgs", "sparseadam"} & set(found)
    assert all(issubclass(one, torch.optim.Optimizer) for one in found.values())


@pytest.mark.parametrize("name", sorted(optimizers.available()))
def test_each_takes_a_step_on_a_stack_or_is_refused_beforehand(name: str, plan: Any):
    try:
        read = plan(optimizer={"name": name, "lr": 0.01})
        whole = stack.check(read)
    except StudyMistake as mistake:
        assert "train.optimizer" in str(mistake)  # noqa: PT017
        assert name == "muon"
        return
    made = optimizers.make(read, whole.to_empty(device="cpu"))
    for parameter in whole.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.clone() for parameter in whole.parameters()]
    made.set(0)
    made.optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, whole.parameters(), strict=True))


# --- groups and schedules ---------------------------------------------------------------------------------------------


def test_weights_decay_and_biases_and_what_is_frozen_do_not(plan: Any):
    module = Small()
    made = optimizers.make(plan(optimizer={"name": "adamw", "weight_decay": 0.1}), module)
    made.set(0)
    groups = told(made, module)
    assert sorted(groups) == ["first.bias", "first.weight", "second.bias", "second.weight"]
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "first.weight": 0.1,
        "second.weight": 0.1,
        "first.bias": 0.0,
        "second.bias": 0.0,
    }


def test_the_last_pattern_that_fits_counts(plan: Any):
    module = Small()
    patterns = {"first.*": {"lr": 0.5, "betas": [0.5, 0.6]}, "*.bias": {"lr": 0.25}}
    made = optimizers.make(plan(optimizer={"lr": 1.0, "betas": [0.1, 0.2]}, groups=patterns), module)
    made.set(0)
    groups = told(made, module)
    assert {name: group["lr"] for name, group in groups.items()} == {
        "first.weight": 0.5,
        "first.bias": 0.25,
        "second.weight": 1.0,
        "second.bias": 0.25,
    }
    assert tuple(groups["first.weight"]["betas"]) == (0.5, 0.6)
    assert tuple(groups["first.bias"]["betas"]) == (0.1, 0.2)


def test_schedules_are_followed_at_any_step_in_any_order(plan: Any):
    module = Small()
    falling, rising = {"from": 1.0, "to": 0.0}, {"from": 0.0, "to": 0.2}
    read = plan(
        steps=11, optimizer={"lr": falling, "weight_decay": rising}, groups={"second.*": {"lr": {"from": 2.0, "to": 0.0}}}
    )
    made = optimizers.make(read, module)
    for step in (10, 5, 0, 5):
        made.set(step)
        groups = told(made, module)
        assert groups["first.weight"]["lr"] == pytest.approx(1 - step / 10)
        assert groups["second.bias"]["lr"] == pytest.approx(2 - step / 5)
        assert groups["first.weight"]["weight_decay"] == pytest.approx(step / 50)
        assert groups["first.bias"]["weight_decay"] == 0


def test_options_of_its_own_reach_the_optimizer(plan: Any):
    module = Small()
    made = optimizers.make(plan(optimizer={"name": "sgd", "momentum": 0.9, "nesterov": True}), module)
    assert all(group["momentum"] == 0.9 and group["nesterov"] for group in made.optimizer.param_groups)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_unknown_names_and_options_are_named_with_the_nearest(plan: Any):
    said = refused(plan, optimizer={"name": "adamv"})
    assert list(said) == ["train.optimizer.name"]
    assert "did you mean 'adam'" in said["train.optimizer.name"]
    said = refused(plan, optimizer={"name": "sgd", "momentun": 0.9, "beta": 1}, groups={"levels.*": {"learning": 1}})
    assert set(said) == {"train.optimizer.momentun", "train.optimizer.beta", "train.groups.levels.*.learning"}
    assert "did you mean 'momentum'" in said["train.optimizer.momentun"]


@pytest.mark.parametrize(
    ("train", "path"),
    [
        ({"optimizer": {"name": "sgd", "momentum": -1}}, "train.optimizer"),
        ({"optimizer": {"name": "sgd", "momentum": "much"}}, "train.optimizer"),
        ({"optimizer": {"name": "adamw", "betas": "text"}}, "train.optimizer"),
        ({"optimizer": {"name": "adamw", "betas": [0.9, {}]}}, "train.optimizer"),
        ({"optimizer": {"name": "adamw", "betas": [0.9]}}, "train.optimizer"),
        ({"groups": {"levels.*": {"betas": "text"}}}, "train.groups.levels.*"),
        ({"groups": {"levels.*": {"lr": "text"}}}, "train.groups.levels.*.lr"),
        ({"groups": {"levels.*": {"lr": {"from": 1, "shape": "x"}}}}, "train.groups.levels.*.lr"),
        ({"optimizer": {"lr": -1.0}}, "train.optimizer.lr"),
        ({"optimizer": {"lr": {"from": 1.0, "to": -1.0}}}, "train.optimizer.lr"),
        ({"optimizer": {"weight_decay": -0.1}}, "train.optimizer.weight_decay"),
        ({"optimizer": {"lr": "text"}}, "train.optimizer.lr"),
        ({"groups": {"levels.*": {"lr": -0.5}}}, "train.groups.levels.*.lr"),
        ({"groups": {"levels.*": {"weight_decay": {"from": 0.1, "to": -0.1}}}}, "train.groups.levels.*.weight_decay"),
        ({"optimizer": []}, "train.optimizer"),
        ({"groups": {"levels.*": 3}}, "train.groups.levels.*"),
    ],
)
def test_what_an_optimizer_cannot_work_with_is_refused_before_training(train: dict[str, Any], path: str, plan: Any):
    said = refused(plan, **train)
    assert list(said) == [path]
    assert "\n" not in said[path]


def test_a_group_that_no_parameter_belongs_to_is_refused(plan: Any):
    with pytest.raises(StudyMistake, match=r"train\.groups\.levels\.fram\.\*: no trained parameter has a name like that"):
        stack.check(plan(groups={"levels.fram.*": {"lr": 0.1}, "levels.frame.*": {"lr": 0.1}}))


def test_a_study_in_which_nothing_is_trained_is_refused(installed: registry.Registry):
    read = study.parse(BASE | {"levels": {"frame": BASE["levels"]["frame"] | {"frozen": True}}}, installed)
    with pytest.raises(StudyMistake, match="levels: there is nothing to train"):
        stack.check(read)
