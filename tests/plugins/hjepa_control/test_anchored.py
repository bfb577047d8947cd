"""Planners where the space has anchors: what held without them still does (P33 to P37), and no plan leaves what data support."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import Toy, quadratic

from hjepa.contracts import ActionSpace, Cost, Plan
from hjepa.randomness import Key
from hjepa_control.cem import Cem
from hjepa_control.gradient import Gradient
from hjepa_control.hierarchical import Hierarchical
from hjepa_control.icem import Icem
from hjepa_control.mppi import Mppi
from hjepa_control.random import Random

ALONG = torch.linspace(-1, 1, 41)
SPACE = ActionSpace(-torch.ones(2), torch.ones(2), torch.stack((ALONG, ALONG), dim=1))
"""Data go along the diagonal of all that a box would allow."""
GOALS = torch.tensor([[2.0, 2.0], [-1.5, -1.5], [0.1, 0.1], [2.8, 2.8]])
PLANNERS: dict[str, Any] = {
    "cem": Cem,
    "icem": Icem,
    "mppi": Mppi,
    "gradient": Gradient,
    "random": Random,
}
SMALL: dict[str, dict[str, Any]] = {name: {"iterations": 3} if name != "random" else {"samples": 64} for name in PLANNERS}
THOROUGH: dict[str, dict[str, Any]] = {
    "cem": {"samples": 128, "iterations": 8},
    "icem": {"samples": 128, "iterations": 8},
    "mppi": {"samples": 128, "iterations": 15, "temperature": 0.01, "spread": 0.2},
    "gradient": {"iterations": 40},
    "random": {"samples": 2000},
}
every = pytest.mark.parametrize("name", PLANNERS)
quick = settings(max_examples=8, deadline=None)


def keyed(seed: int = 0, count: int = len(GOALS)) -> Key:
    return Key.of(seed, "plan").fold(torch.arange(count))


def off(actions: Tensor) -> Tensor:
    """How far from the diagonal an action is."""
    return (actions[..., 0] - actions[..., 1]).abs()


def exploitable(places: Tensor, goals: Tensor) -> Cost:
    """Right where data are; away from them the model promises the better the further it is."""
    actions = torch.cat((places[:, :1], places.diff(dim=1)), dim=1)
    cost = quadratic(places, goals)
    return Cost(cost.value - 20 * (off(actions) - 0.3).relu().sum(1), cost.violation)


def truth(plan: Plan) -> Tensor:
    """(B,): what it really costs."""
    return (plan.actions.sum(1) - GOALS).square().sum(-1)


@every
def test_where_the_model_is_wrong_away_from_data_only_anchors_find_the_way(name: str) -> None:
    free = PLANNERS[name](**THOROUGH[name]).plan(Toy(GOALS, 4, replace(SPACE, anchors=None), exploitable), None, keyed())
    held = PLANNERS[name](**THOROUGH[name]).plan(Toy(GOALS, 4, SPACE, exploitable), None, keyed())
    assert (free.cost.value < -1).all() and (off(free.actions).amax(1) > 0.3).all() and truth(free).mean() > 1
    assert (off(held.actions) < 0.15).all() and (held.cost.value >= 0).all()
    assert truth(held).max() < 0.02


@pytest.mark.parametrize("name", ["cem", "icem", "mppi"])
def test_candidates_that_are_free_are_fooled_again(name: str) -> None:
    """`anchored` is a share: with none of them, anchors are where the search begins and no more."""
    free = PLANNERS[name](**THOROUGH[name], anchored=0.0).plan(Toy(GOALS, 4, SPACE, exploitable), None, keyed())
    assert (free.cost.value < -1).any()


@every
@quick
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 12), st.integers(1, 3))
def test_bounds_are_kept_and_the_cost_is_that_of_the_plan(name: str, seed: int, horizon: int, count: int, kinds: int) -> None:
    """P33, P35, with any anchors: one alone, several that are equal, and a dimension in which none differs."""
    draw = torch.Generator().manual_seed(seed)
    anchors = torch.randn(count, 2, generator=draw)[torch.randint(kinds, (count,), generator=draw) % count]
    anchors[:, 1] = torch.where(torch.tensor(bool(seed % 2)), anchors[:, 1], 0.3)
    space = ActionSpace(anchors.amin(0), anchors.amax(0), anchors)
    problem = Toy(torch.randn(3, 2, generator=draw), horizon, space)
    plan = PLANNERS[name](**SMALL[name]).plan(problem, None, keyed(seed, 3))
    assert plan.actions.shape == (3, horizon, 2) and plan.actions.isfinite().all()
    assert (plan.actions >= space.low).all() and (plan.actions <= space.high).all()
    torch.testing.assert_close(problem.cost(problem.rollout(plan.actions[:, None])).value, plan.cost.value)


@every
def test_a_plan_is_its_tasks_own(name: str) -> None:
    """P37: whatever is planned beside it, and for any number of plans that are compared with anchors at once."""
    planner = PLANNERS[name](**SMALL[name])
    plan = planner.plan(Toy(GOALS, 4, SPACE), None, keyed())
    assert torch.equal(plan.actions, planner.plan(Toy(GOALS, 4, SPACE), None, keyed()).actions)
    alone = planner.plan(Toy(GOALS[1:2], 4, SPACE), None, Key(keyed().word[1:2]))
    torch.testing.assert_close(alone.actions, plan.actions[1:2])
    assert not torch.equal(plan.actions, planner.plan(Toy(GOALS, 4, SPACE), None, keyed(1)).actions)


@every
def test_a_plan_before_is_never_lost(name: str) -> None:
    """P34: also where it was made away from anchors."""
    aside = torch.tensor([[0.1, -0.1], [-0.1, 0.1], [0.1, -0.1], [-0.1, 0.1]])
    nothing = torch.zeros(len(GOALS), 1)
    before = Plan(GOALS[:, None] / 4 + aside, Cost(nothing, nothing))
    again = PLANNERS[name](**SMALL[name]).plan(Toy(GOALS, 4, SPACE), before, keyed(7))
    assert (again.cost.value < 1e-5).all()


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient"])
def test_more_iterations_never_make_it_worse(name: str) -> None:
    """P34."""
    options = {"shrinking": 1.0} if name == "icem" else {}
    found = [
        PLANNERS[name](iterations=count, **options).plan(Toy(GOALS, 4, SPACE), None, keyed()).cost.value
        for count in range(1, 7)
    ]
    later, earlier = torch.stack(found[1:]), torch.stack(found[:-1])
    assert (later <= earlier + 1e-6).all() and (later < earlier).any()


@every
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_has_no_cost_ranks_last(name: str, bad: float) -> None:
    """P36."""

    def broken(places: Tensor, goals: Tensor) -> Cost:
        cost = quadratic(places, goals)
        return Cost(torch.where(places[:, -1, 0] > 0.5, bad, cost.value), cost.violation)

    plan = PLANNERS[name](**SMALL[name]).plan(Toy(GOALS, 4, SPACE, broken), None, keyed())
    assert plan.cost.value.isfinite().all() and plan.actions.isfinite().all()
    nothing = Toy(GOALS, 4, SPACE, lambda places, goals: Cost(goals[:, 0] + bad, 0 * goals[:, 0]))
    assert PLANNERS[name](**SMALL[name]).plan(nothing, None, keyed()).actions.isfinite().all()


@every
def test_the_first_population_is_anchors(name: str) -> None:
    """All but the first, each step for itself."""
    seen: list[Tensor] = []

    def watched(places: Tensor, goals: Tensor) -> Cost:
        seen.append(torch.cat((places[:, :1], places.diff(dim=1)), dim=1))
        return quadratic(places, goals)

    PLANNERS[name](**SMALL[name]).plan(Toy(GOALS, 3, SPACE, watched), None, keyed())
    first = seen[0].view(4, -1, 3, 2)[:, 1:]
    assert SPACE.anchors is not None
    away = (first[..., None, :] - SPACE.anchors).norm(dim=-1).amin(-1)
    assert (away < 1e-5).all() and first[:, :, 0].std() > 0.4 and not torch.equal(first[:, :, 0], first[:, :, 1])


@every
def test_no_candidate_leaves_what_data_support(name: str) -> None:
    """Anchors on a circle, whose means lie within it: neither they nor any step of a search is tried there."""
    angle = torch.arange(24) * torch.pi / 12
    ring = torch.stack((angle.sin(), angle.cos()), dim=1)
    furthest: list[float] = []

    def watched(places: Tensor, goals: Tensor) -> Cost:
        actions = torch.cat((places[:, :1], places.diff(dim=1)), dim=1).flatten(0, 1)
        furthest.append(torch.cdist(actions.detach(), ring).amin(1).max().item())
        return quadratic(places, goals)

    problem = Toy(GOALS, 4, ActionSpace(ring.amin(0), ring.amax(0), ring), watched)
    PLANNERS[name](**SMALL[name]).plan(problem, None, keyed())
    plan = PLANNERS[name](**THOROUGH[name]).plan(problem, None, keyed())
    assert max(furthest) < 1.01 * (ring[0] - ring[1]).norm() and plan.cost.value.max() < 0.3


def test_where_few_things_are_done_a_plan_is_made_of_these() -> None:
    """Anchors that lie upon one another leave no room between them."""
    few = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]).repeat(8, 1)
    problem = Toy(torch.tensor([[2.0, 2.0], [-3.0, 1.0], [0.0, 0.0]]), 4, ActionSpace(few.amin(0), few.amax(0), few))
    plan = Cem(samples=256, elites=16, iterations=8).plan(problem, None, keyed(0, 3))
    assert (plan.actions[:, :, None] == few).all(-1).any(-1).all()
    torch.testing.assert_close(plan.actions.sum(1), problem.goals)


@every
def test_with_one_step_above_a_hierarchy_is_its_planner(name: str) -> None:
    """P31."""
    planner = PLANNERS[name](**SMALL[name])
    tall: Any = replace(Toy(GOALS, 4, SPACE), above=Toy(GOALS, 1, SPACE))  # type: ignore[arg-type]
    found = Hierarchical(inner=lambda: planner).plan(tall, None, keyed())  # type: ignore[arg-type]
    assert torch.equal(found.actions, planner.plan(Toy(GOALS, 4, SPACE), None, keyed()).actions)
