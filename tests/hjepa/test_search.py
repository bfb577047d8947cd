"""The key `search:`: what is varied, what is wrong with it, and the walk through the space."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hjepa import registry, search, study
from hjepa.search import Bound, Choice, Range, Search
from hjepa.sweep import strategies

REGISTRY = registry.load()
BASE: dict[str, Any] = {
    "data": {"video": {"name": "moving_digits", "frames": 8, "size": 16, "digit_size": 8, "batch": 4}},
    "levels": {
        "frame": {
            "name": "forecast",
            "encoder": {"name": "conv", "width": 8, "base": 4, "stages": 2},
            "predictor": {"name": "causal", "depth": 1, "heads": 2},
            "energy": "l2",
            "prevention": ["vicreg"],
        }
    },
    "train": {"steps": 20, "device": "cpu", "track": False},
    "probes": {"where": {"name": "regression", "level": "frame", "target": "position"}},
}
SPACE: dict[str, Any] = {
    "levels.frame.prevention.0.std": {"low": 1.0, "high": 100.0, "log": True},
    "levels.frame.encoder": {
        "choice": {
            "narrow": {"name": "conv", "width": 8, "base": 4, "stages": 2},
            "free": {"name": "conv", "width": {"low": 8, "high": 16, "step": 8}, "base": 4, "stages": 2},
        }
    },
}


def searched(**keys: Any) -> study.Study:
    return study.parse({**BASE, "search": {"objective": {"probe/where/r2": "maximize"}, "space": SPACE, **keys}}, REGISTRY)


def wrong(**keys: Any) -> dict[str, str]:
    """Everything that is wrong with a study that searches."""
    plan = searched(**keys)
    return {problem.path: problem.message for problem in [*plan.problems, *search.problems(plan, REGISTRY)]}


def space(**keys: Any) -> Search:
    plan = searched(**keys)
    plan.complain()
    assert plan.search is not None
    return plan.search


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_study_that_searches_is_read_and_says_so_again():
    plan = searched(
        sampler={"name": "tpe", "n_startup_trials": 3},
        pruner="median",
        constraints={"collapse/frame/std_ratio": {"at_least": 0.1}},
        trials=7,
    )
    assert plan.problems == []
    again = study.parse(plan.resolved(), REGISTRY)
    assert again.problems == []
    assert again.resolved() == plan.resolved()
    assert again.search == plan.search
    assert "search" not in search.base_of(plan)
    assert "search" not in study.parse(BASE, REGISTRY).resolved()


def test_a_right_search_has_no_problems():
    assert wrong() == {}


def test_everything_that_is_wrong_is_said_at_once():
    found = wrong(
        sampler={"name": "tpe", "n_startup_trial": 3},
        pruner={"name": "median", "n_startup_trials": "few"},
        objective={"probe/were/r2": "maximize"},
        constraints={"collapse/frame/std_ratios": {"at_least": 1}, "energy/fram": {"at_most": 1}, "los/frame": {"at_most": 1}},
        space={
            "levels.frame.prevention.0.stdd": {"low": 1.0, "high": 2.0},
            "levels.frame.stride": {"low": 0, "high": 2},
            "levels.frame.energy": {"choice": {"near": "l1", "odd": "l3", "deep": {"name": "l1", "depth": 3}}},
        },
    )
    said = {
        "search.sampler.n_startup_trial": "did you mean 'n_startup_trials'",
        "search.pruner.n_startup_trials": "valid integer; written: 'few'",
        "search.objective.probe/were/r2": "there is no 'were' in `probes`, did you mean 'where'",
        "search.constraints.collapse/frame/std_ratios": "did you mean 'std_ratio'",
        "search.constraints.energy/fram": "did you mean 'frame'",
        "search.constraints.los/frame": "did you mean 'loss'",
        "search.space.levels.frame.prevention.0.stdd": "did you mean 'levels.frame.prevention.0.std'",
        "search.space.levels.frame.stride": "low 0: levels.frame.stride: input should be greater than or equal to 1",
        "search.space.levels.frame.energy.choice.odd": "unknown energy 'l3'",
        "search.space.levels.frame.energy.choice.deep": "levels.frame.energy.depth: unknown key",
    }
    assert found.keys() == said.keys()
    for path, words in said.items():
        assert words in found[path]


@pytest.mark.parametrize(
    ("keys", "path", "words"),
    [
        ({"sampler": "tpp"}, "search.sampler", "did you mean 'tpe'"),
        ({"sampler": 3}, "search.sampler", "no such one"),
        ({"pruner": {"name": "hyperbands"}}, "search.pruner", "did you mean 'hyperband'"),
        ({"objective": {}}, "search.objective", "at least 1"),
        ({"objective": {"lr": "max"}}, "search.objective.lr", "'maximize' or 'minimize'"),
        ({"constraints": {"lr": {}}}, "search.constraints.lr", "at_least or at_most"),
        ({"constraints": {"lr": {"atleast": 1}}}, "search.constraints.lr.atleast", "did you mean 'at_least'"),
        ({"constraints": {"lr": {"at_least": 2, "at_most": 1}}}, "search.constraints.lr", "nothing can keep both"),
        ({"trials": 0}, "search.trials", "greater than or equal to 1"),
        ({"sampels": 3}, "search.sampels", "did you mean 'sampler'"),
        ({"space": {}}, "search.space", "at least 1"),
        ({"space": {"seed": {"low": 3, "high": 1}}}, "search.space.seed", "low 3 lies above high 1"),
        ({"space": {"seed": {"low": 0, "high": 1, "log": True}}}, "search.space.seed", "logarithmic range lies above 0"),
        ({"space": {"seed": {"low": 0, "high": 1, "step": 0}}}, "search.space.seed", "a step is larger than 0"),
        ({"space": {"seed": {"low": "0", "high": 1}}}, "search.space.seed.low", "finite number"),
        ({"space": {"seed": {"low": 0, "hihg": 1}}}, "search.space.seed.hihg", "did you mean 'high'"),
        ({"space": {"seed": [1, 2]}}, "search.space.seed", "a mapping is needed"),
        ({"space": {"seed": {"choice": [1, 2]}}}, "search.space.seed.choice", "dictionary"),
        ({"space": {"seed": {"choice": {}}}}, "search.space.seed.choice", "at least 1"),
        ({"space": {"seed": {"choice": {"a": {"low": 2, "high": 1}}}}}, "search.space.seed.choice.a", "lies above"),
        ({"sampler": "grid"}, "search.space.levels.frame.prevention.0.std", "a grid needs a step"),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(keys: dict[str, Any], path: str, words: str):
    found = wrong(**keys)
    assert words in found.get(path, f"not noted: {found}")


@pytest.mark.parametrize(("key", "value"), [("pruner", "median"), ("sampler", "cma_es")])
def test_several_objectives_exclude_what_knows_one(key: str, value: str):
    two = {"probe/where/r2": "maximize", "collapse/frame/rank": "maximize"}
    assert wrong(objective=two) == {}
    assert "objective" in wrong(objective=two, **{key: value})["search"]


def test_a_key_within_another_is_refused():
    inner = {**SPACE, "levels.frame.encoder.width": {"low": 8, "high": 16, "step": 8}}
    assert "lies within levels.frame.encoder" in wrong(space=inner)["search.space.levels.frame.encoder.width"]


# --- the walk ---------------------------------------------------------------------------------------------------------


def test_a_parameter_within_a_choice_exists_in_that_branch_alone():
    ways = [picked for picked, _ in search.ways(space().space, lambda numbers: [numbers.low])]
    assert [list(picked) for picked in ways] == [
        ["levels.frame.prevention.0.std", "levels.frame.encoder"],
        ["levels.frame.prevention.0.std", "levels.frame.encoder", "levels.frame.encoder.free.width"],
    ]


def test_values_stand_where_the_study_reads_them():
    last = [values for _, values in search.ways(space().space, lambda numbers: [numbers.low, numbers.high])][-1]
    tree = search.applied(study.parse(BASE, REGISTRY).resolved(), last)
    assert tree["levels"]["frame"]["prevention"][0]["std"] == 100.0
    assert tree["levels"]["frame"]["encoder"]["width"] == 16
    with pytest.raises(KeyError):
        search.applied(tree, {"levels.frame.prevention.1": "vicreg"})


def branching(depth: int) -> st.SearchStrategy[Any]:
    plain = st.integers()
    if not depth:
        return plain
    inner = branching(depth - 1)
    choice = st.dictionaries(st.sampled_from("abc"), inner, min_size=1).map(lambda values: Choice(choice=values))
    return st.one_of(plain, choice, st.lists(inner, max_size=2), st.just(Range(low=0, high=2, step=1)))


def counted(value: Any) -> int:
    """How many ways there are, by the rules of sum and product."""
    if isinstance(value, Range):
        return 3
    if isinstance(value, Choice):
        return sum(counted(item) for item in value.choice.values())
    return math.prod(counted(item) for item in value) if isinstance(value, list) else 1


@given(st.lists(branching(2).filter(lambda value: isinstance(value, Range | Choice)), max_size=3))
def test_a_grid_has_every_combination_once(nodes: list[Any]):
    found = list(search.combinations({f"k{place}": node for place, node in enumerate(nodes)}))
    assert len(found) == math.prod(counted(node) for node in nodes)
    assert len({tuple(sorted(picked.items())) for picked in found}) == len(found)


@given(st.integers(-5, 5), st.integers(0, 30), st.sampled_from([0.1, 0.25, 1, 3]))
def test_the_steps_of_a_range_stay_within_it(low: int, more: int, step: float):
    steps = Range(low=low, high=low + more * step, step=step).steps()
    assert len(steps) == more + 1
    assert steps[0] == low
    assert steps[-1] == pytest.approx(low + more * step)


def test_an_excess_says_how_far_outside():
    assert Bound(at_least=0.5).excess(0.25) == 0.25
    assert Bound(at_least=0.5).excess(0.75) == -0.25
    assert Bound(at_least=1, at_most=2).excess(1.5) == -0.5
    assert Bound(at_least=1, at_most=2).excess(5) == 3


# --- strategies -------------------------------------------------------------------------------------------------------


def proposed(sampler: str, trials: int, workers: int) -> list[dict[str, Any]]:
    """What is proposed where so many workers take turns, each with a study of its own over one storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    told = space(sampler=sampler, space={"seed": {"low": 1, "high": 64}, "train.clip": {"low": 0.1, "high": 1.0}})
    storage = optuna.storages.InMemoryStorage()
    studies = [optuna.create_study(storage=storage, study_name="s", load_if_exists=True) for _ in range(workers)]
    for number in range(trials):
        one = studies[number % workers]
        one.sampler = strategies.sampler(told, seed=3, number=number)
        trial = one.ask()
        one.tell(trial, trial.suggest_int("seed", 1, 64) + trial.suggest_float("train.clip", 0.1, 1.0))
    return [trial.params for trial in studies[0].trials]


@pytest.mark.parametrize("sampler", ["tpe", "cma_es", "nsga2", "random", "qmc"])
def test_proposals_do_not_depend_on_who_asks(sampler: str):
    pytest.importorskip("cmaes")
    one, three = proposed(sampler, 15, 1), proposed(sampler, 15, 3)
    assert one == three
    assert len({tuple(params.values()) for params in one}) > 10, "workers draw the same"


@pytest.mark.parametrize("name", list(search.Sampler.names))
def test_every_sampler_can_be_made(name: str):
    assert strategies.sampler(space(sampler=name), 0, 0) is not None


@pytest.mark.parametrize("name", list(search.Pruner.names))
def test_every_pruner_can_be_made(name: str):
    assert strategies.pruner(space(pruner=name), 100) is not None
    assert not strategies.problems(space(pruner=name))


def test_hyperband_knows_how_long_a_training_is():
    pruner = strategies.pruner(space(pruner="hyperband"), 200)
    assert (pruner._min_resource, pruner._max_resource) == (20, 200)  # type: ignore[attr-defined]


def test_one_line_says_how_large_a_sweep_is() -> None:
    assert (
        search.told(space(trials=7)) == "a sweep has 7 trials by tpe, over levels.frame.prevention.0.std, levels.frame.encoder"
    )
    grid = {"levels.frame.encoder": SPACE["levels.frame.encoder"], "seed": {"choice": {"a": 0, "b": 1}}}
    assert search.told(space(sampler="grid", space=grid)) == "a sweep has 6 trials by grid, over levels.frame.encoder, seed"
    assert "as many trials as --trials says" in search.told(space())
