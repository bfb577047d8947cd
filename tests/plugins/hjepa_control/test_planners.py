"""Every planner, on problems whose answer is known (P33 to P37)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import SPACE, Toy, posed, quadratic

from hjepa.contracts import ActionSpace, Cost, Plan
from hjepa.randomness import Key
from hjepa_control.beam import Beam
from hjepa_control.cem import Cem
from hjepa_control.gradient import Gradient
from hjepa_control.icem import Icem, coloured
from hjepa_control.mppi import Mppi, weights
from hjepa_control.random import Random

GOALS = torch.tensor([[2.0, 3.0], [-1.5, -1.0], [0.0, 0.0], [3.0, 6.0], [-0.7, 4.4]])
PLANNERS: dict[str, Any] = {
    "cem": Cem(samples=256, elites=32, iterations=15, floor=0.0),
    "icem": Icem(samples=256, elites=16, iterations=30, floor=0.0, colour=0.0),
    "mppi": Mppi(iterations=30, temperature=0.01, spread=0.1, samples=128),
    "gradient": Gradient(iterations=150, rate=0.05),
}
SMALL: dict[str, Any] = {
    "cem": Cem(iterations=3),
    "icem": Icem(iterations=3),
    "mppi": Mppi(iterations=3),
    "gradient": Gradient(iterations=3),
    "random": Random(samples=64),
    "beam": Beam(width=4, moves=8),
}
every = pytest.mark.parametrize("name", SMALL)
quick = settings(max_examples=10, deadline=None)


def keyed(seed: int = 0, count: int = len(GOALS)) -> Key:
    return Key.of(seed, "plan").fold(torch.arange(count))


def costs(problem: Toy, plan: Plan) -> Tensor:
    """(B,), asked for again."""
    return problem.cost(problem.rollout(plan.actions[:, None])).value[:, 0]


@pytest.mark.parametrize("name", PLANNERS)
def test_a_quadratic_cost_is_solved(name: str) -> None:
    """The least cost is 0 where a goal is within reach, and else that of the nearest corner."""
    plan = PLANNERS[name].plan(Toy(GOALS), None, keyed())
    torch.testing.assert_close(plan.actions.sum(1), GOALS, atol=0.05, rtol=0)
    far = Toy(torch.tensor([[9.0, 9.0], [-9.0, 0.3]]))
    plan = PLANNERS[name].plan(far, None, keyed(0, 2))
    torch.testing.assert_close(plan.actions.sum(1), torch.tensor([[4.0, 8.0], [-4.0, 0.3]]), atol=0.06, rtol=0)


@every
@quick
@given(st.integers(0, 1000), st.integers(1, 6))
def test_bounds_are_kept_and_the_cost_is_that_of_the_plan(name: str, seed: int, horizon: int) -> None:
    """P33, P35; bounds of what is tried are looked at by the problem."""
    problem = Toy(3 * torch.randn(4, 2, generator=torch.Generator().manual_seed(seed)), horizon)
    plan = SMALL[name].plan(problem, None, keyed(seed, 4))
    assert plan.actions.shape == (4, horizon, 2) and plan.cost.value.shape == (4, 1) and not plan.actions.requires_grad
    assert (plan.actions >= problem.space.low).all() and (plan.actions <= problem.space.high).all()
    torch.testing.assert_close(costs(problem, plan), plan.cost.value[:, 0])


@every
def test_a_plan_is_its_tasks_own(name: str) -> None:
    """P37: a batch of tasks is so many single ones, and a key gives one plan."""
    plan = SMALL[name].plan(Toy(GOALS), None, keyed())
    assert torch.equal(plan.actions, SMALL[name].plan(Toy(GOALS), None, keyed()).actions)
    alone = SMALL[name].plan(Toy(GOALS[1:2]), None, Key(keyed().word[1:2]))
    torch.testing.assert_close(alone.actions, plan.actions[1:2])
    assert not torch.equal(plan.actions, SMALL[name].plan(Toy(GOALS), None, keyed(1)).actions)


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient", "random"])
def test_a_plan_before_is_never_lost(name: str) -> None:
    """P34: whatever else is tried; and where it is shorter, its steps come first."""
    problem = Toy(GOALS)
    best = PLANNERS["cem"].plan(problem, None, keyed())
    again = SMALL[name].plan(problem, best, keyed(7))
    assert (again.cost.value <= best.cost.value + 1e-6).all()
    short = Plan(best.actions[:, :2], best.cost)
    first = SMALL[name].plan(replace(problem, horizon=2, goals=best.actions[:, :2].sum(1)), short, keyed(7))
    torch.testing.assert_close(first.cost.value, torch.zeros(5, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient"])
def test_more_iterations_never_make_it_worse(name: str) -> None:
    """P34."""
    options = {"shrinking": 1.0} if name == "icem" else {}
    planners = [type(SMALL[name])(iterations=iterations, **options) for iterations in range(1, 7)]
    found = [planner.plan(Toy(GOALS), None, keyed()).cost.value for planner in planners]
    later, earlier = torch.stack(found[1:]), torch.stack(found[:-1])
    assert (later <= earlier + 1e-6).all() and (later < earlier).any()


@pytest.mark.parametrize("name", ["cem", "icem", "mppi", "gradient", "random"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_has_no_cost_ranks_last(name: str, bad: float) -> None:
    """P36: also where nothing has any."""

    def broken(places: Tensor, goals: Tensor) -> Cost:
        cost = quadratic(places, goals)
        return Cost(torch.where(places[:, -1, 0] > 0.5, bad, cost.value), cost.violation)

    plan = SMALL[name].plan(Toy(GOALS, valued=broken), None, keyed())
    assert plan.cost.value.isfinite().all() and plan.actions.isfinite().all()
    nothing = SMALL[name].plan(Toy(GOALS, valued=lambda places, goals: Cost(goals[:, 0] + bad, 0 * goals[:, 0])), None, keyed())
    assert nothing.actions.isfinite().all()


@every
def test_a_guardrail_comes_before_every_value(name: str) -> None:
    def fenced(places: Tensor, goals: Tensor) -> Cost:
        return Cost(quadratic(places, goals).value, (places[..., 0] - 0.5).relu().sum(1))

    plan = SMALL[name].plan(Toy(GOALS, valued=fenced), None, keyed())
    assert (plan.cost.violation == 0).all() and (plan.actions.cumsum(1)[..., 0] <= 0.5 + 1e-6).all()


def test_with_as_many_elites_as_samples_the_mean_is_theirs() -> None:
    cem, problem = Cem(samples=64, elites=64, iterations=1), Toy(GOALS)
    candidates = cem._drawn(problem, torch.zeros(5, 4, 2), torch.ones(5, 4, 2), None, keyed())
    mean, _ = cem._fitted(problem, candidates, torch.zeros(5, 4, 2), torch.ones(5, 4, 2))
    torch.testing.assert_close(mean, candidates.mean(1))
    with pytest.raises(ValueError, match="elites is 9"):
        Cem(samples=8, elites=9)


@quick
@given(st.integers(0, 1000), st.floats(0.01, 10), st.floats(-50, 50))
def test_weights_of_plans_sum_to_one_and_know_differences_alone(seed: int, temperature: float, more: float) -> None:
    """P36."""
    value = torch.rand(3, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cost = Cost(value, torch.zeros_like(value))
    found = weights(cost, temperature)
    torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=torch.float64))
    assert (found >= 0).all()
    torch.testing.assert_close(found, weights(Cost(value + more, cost.violation), temperature), rtol=1e-6, atol=1e-12)
    one = value.argmin(1)
    assert torch.equal(weights(cost, 1e-9).argmax(1), one)
    torch.testing.assert_close(weights(cost, 1e9), torch.full((3, 20), 0.05, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 2, 7, 16])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.0])
def test_coloured_noise_has_variance_one_and_changes_slowly(steps: int, exponent: float) -> None:
    white = torch.randn(20_000, steps, 1, generator=torch.Generator().manual_seed(0))
    found = coloured(white, exponent)
    torch.testing.assert_close(found.var(0), torch.ones(steps, 1), atol=0.05, rtol=0)
    if steps > 2 and exponent:
        assert found.diff(dim=1).square().mean() < 0.8 * white.diff(dim=1).square().mean()
    assert exponent or torch.equal(found, white)


def test_noise_is_smooth_over_the_steps_of_the_world_also_where_an_action_is_several() -> None:
    space = ActionSpace(SPACE.low.repeat(4), SPACE.high.repeat(4), joined=4)
    whole, parts = (Icem()._noise(*of) for of in ((space, keyed(), (9, 3, 8)), (SPACE, keyed(), (9, 12, 2))))
    assert torch.equal(whole.reshape(parts.shape), parts)


def test_a_beam_takes_moves_from_anchors() -> None:
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -0.5]])
    space = ActionSpace(anchors.amin(0), anchors.amax(0), anchors)
    goals = torch.tensor([[2.0, 3.0], [-3.0, -1.0], [1.0, 1.0]])
    plan = Beam(width=64, moves=32).plan(Toy(goals, 5, space), None, keyed(0, 3))
    assert (plan.actions[:, :, None] == anchors).all(-1).any(-1).all()
    torch.testing.assert_close(plan.actions.sum(1), goals, atol=1e-5, rtol=0)


def test_as_many_candidates_are_judged_as_are_asked_for() -> None:
    """Equal compute is counted by calls of the model."""
    for planner, expected in (
        (Cem(), 64 * 5),
        (Random(samples=100), 100),
        (Mppi(), 64 * 5 + 1),
        (Icem(), 64 + 51 + 41 + 33 + 26),
    ):
        problem = Toy(GOALS)
        planner.plan(problem, None, keyed())
        assert problem.asked == expected, planner


def test_gradients_take_one_rollout_a_step_and_one_in_the_end() -> None:
    problem = Toy(GOALS)
    Gradient(starts=8, iterations=5).plan(problem, None, keyed())
    assert problem.asked == 8 * 5 + 8


def test_what_can_be_done_in_one_way_only_is_done_so() -> None:
    """A dimension with equal bounds, which others' worlds may have."""
    fixed = ActionSpace(torch.tensor([-1.0, 0.5]), torch.tensor([1.0, 0.5]))
    plan = Gradient(iterations=60).plan(Toy(torch.tensor([[2.0, 2.0]]), space=fixed), None, keyed(0, 1))
    torch.testing.assert_close(plan.actions.sum(1), torch.tensor([[2.0, 2.0]]), atol=0.05, rtol=0)


def test_gradients_lead_away_from_standing_still_in_a_room() -> None:
    """Where nothing moves, a wall is met never, which is a quotient by 0: its gradient must be one all the same."""
    problem = posed(8, count=4)
    still = torch.zeros(4, 1, 8, 2, requires_grad=True)
    problem.cost(problem.rollout(still)).value.sum().backward()
    assert still.grad is not None and still.grad.isfinite().all() and (still.grad[:, 0, 0].abs().sum(1) > 0).all()
