"""How near to the machine's matrix products does planning come, and what does planning for many tasks at once gain?

`cem` with 64 plans of 16 steps and 5 iterations, on a level whose predictor is a `gru` as wide as the states; beside it the same
written plainly for one task after the other, with torch's GRUCell, from the same weights and random numbers. `hierarchical` with two
levels, of which the upper takes four steps in one and its actions from what walks did; beside it the same planner, asked for each
task alone. Plans must agree, or there is no result. Timed is what the planner does, as `hjepa plan` times it: pictures of where tasks
stand are encoded before. Weights are as they are before training, and goals are states to which some plan leads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.harness import Bench, run
from hjepa import control, making, registry, study
from hjepa.contracts import ActionSpace, Planner
from hjepa.flops import counted
from hjepa.nn.population import anywhere
from hjepa.randomness import Key, normal
from hjepa.stack import Stack
from hjepa_control.cem import Cem
from hjepa_control.distance import Distance
from hjepa_control.hierarchical import Hierarchical
from hjepa_control.two_rooms import TwoRooms

SAMPLES, ELITES, ITERATIONS, SPREAD, FLOOR = 64, 8, 5, 0.5, 0.05
STATE: dict[str, Any] = {"name": "forecast", "encoder": {"name": "conv", "base": 8}, "predictor": "gru", "energy": "l2"}
LEAP = {**STATE, "stride": 4, "window": 1, "encoder": "identity", "macro_action": "mlp"}
WALKS = 64
"""What the upper level has seen done."""


class Tasks(NamedTuple):
    """Problems, and what their plans are drawn from."""

    problem: control.Problem
    key: Key

    @torch.no_grad()
    def plans(self, planner: Planner) -> Tensor:
        """(B, K, A)."""
        return planner.plan(self.problem, None, self.key).actions


def posed(stack: Stack, count: int, horizons: dict[str, int], device: torch.device) -> tuple[Tasks, list[Tasks]]:
    """So many tasks at once, and each alone."""
    key, rooms = Key.of(0, "benchmark", device=device).fold(torch.arange(count)), TwoRooms(0)
    space = ActionSpace(rooms.actions.low.to(device), rooms.actions.high.to(device))
    observed = rooms.reset(rooms.tasks(key))

    def tasks(rows: Tensor) -> Tasks:
        costs = {label: [(Distance(stack.composer.spec(label, "walks")), 1.0)] for label in horizons}
        seen = {name: value[rows] for name, value in observed.items()}
        own = Key(key.word[rows])
        return Tasks(somewhere(control.problem(stack, "walks", horizons, seen, None, costs, space), own), own)

    every = torch.arange(count, device=device)
    with torch.no_grad():
        return tasks(every), [tasks(row) for row in every.split(1)]


def somewhere(problem: control.Problem, key: Key) -> control.Problem:
    """The same with a goal at each level, to which some plan leads: so the best plan is not the one that does nothing."""
    drawn = anywhere(problem.space, key, "goal", (1, problem.horizon))
    goal = problem.rollout(drawn).slice(problem.horizon - 1, problem.horizon)
    return replace(problem, goal=goal, above=problem.above and somewhere(problem.above, key.fold("above")))


def made(width: int, levels: Sequence[str], device: torch.device) -> Stack:
    """Weights as they are before training: they cost as much as others."""
    state = {**STATE, "encoder": {**STATE["encoder"], "width": width}}
    asked = {"data": {"walks": {"name": "trajectories", "of": "two_rooms"}}, "levels": {"state": state, "leap": LEAP}}
    asked["levels"] = {label: asked["levels"][label] for label in levels}
    plan = study.parse(asked, registry.load())
    plan.complain()
    sources = making.made_sources(plan)
    stack = making.new_stack(plan, sources, device)
    with torch.no_grad():  # so that the upper level knows what can be done
        stack.states(levels[-1], "walks", sources["walks"].batch(torch.arange(WALKS), device))
    return stack.eval()


def plain_cem(cell: nn.GRUCell, start: Tensor, goal: Tensor, low: Tensor, high: Tensor, noise: Tensor) -> Tensor:
    """The plan (K, A) from a state (1, D) to another; noise (iterations, S, K, A)."""
    half = (high - low) / 2
    mean = ((low + high) / 2).expand(noise.shape[2:])
    deviation, best, least = (SPREAD * half).expand_as(mean), None, torch.inf
    for drawn in noise:
        plans = mean + deviation * drawn
        plans[0] = mean
        if best is not None:
            plans[1] = best
        plans = plans.clamp(low, high)
        state, cost = start.expand(len(plans), -1), torch.zeros(len(plans), device=start.device)
        for action in plans.unbind(dim=1):
            state = cell(action, state)
            cost = cost + (state - goal).square().mean(dim=1)
        order = cost.argsort(stable=True)
        if cost[order[0]] < least:
            best, least = plans[order[0]], float(cost[order[0]])
        elites = plans[order[:ELITES]]
        mean, deviation = elites.mean(dim=0), elites.std(dim=0, correction=0).maximum(FLOOR * half)
    assert best is not None
    return best


def plain_cell(predictor: Any) -> nn.GRUCell:
    """torch's, with the weights of ours."""
    cell = nn.GRUCell(predictor.of_read.in_features, predictor.of_state.in_features, device=predictor.of_state.weight.device)
    given = {"ih": predictor.of_read, "hh": predictor.of_state}
    cell.load_state_dict(
        {f"{what}_{name}": getattr(layer, what) for name, layer in given.items() for what in ("weight", "bias")}
    )
    return cell


@torch.no_grad()
def plain_plans(tasks: Tasks, cell: nn.GRUCell) -> Tensor:
    problem, space = tasks.problem, tasks.problem.space
    assert problem.goal is not None
    shape = (SAMPLES, problem.horizon, len(space.low))
    noise = torch.stack([normal(tasks.key.fold(turn), "candidates", shape) for turn in range(ITERATIONS)], dim=1)
    each = zip(problem.start.tokens[:, -1], problem.goal.tokens[:, 0], noise, strict=True)
    return torch.stack([plain_cem(cell, start, goal, space.low, space.high, drawn) for start, goal, drawn in each])


def compare(bench: Bench, name: str, own: Callable[[], Tensor], plain: Callable[[], Tensor]) -> None:
    plans = own()
    difference = float((plans - plain()).abs().max())
    assert difference < 1e-5, f"{name}: the plans differ by {difference}"
    assert plans.abs().flatten(1).amax(1).min() > 1e-2, f"{name}: some plan does nothing, and it is easy to agree about that"
    rows, work = bench.rounds({"own": own, "plain": plain}, 5), counted(own) / 1e9
    bench.figure(f"{name}: decision", "ms", [1e3 * row["own"] for row in rows], [1e3 * row["plain"] for row in rows])
    bench.figure(f"{name}: work of a decision", "GFLOP", [work])
    own_shares, plain_shares = ([100 * work / row[side] / row["gemm"] for row in rows] for side in ("own", "plain"))
    bench.figure(f"{name}: share of the rate of a matrix product", "%", own_shares, plain_shares, rate=True)
    bench.figure(f"{name}: greatest difference of plans", "pixels", [difference])


def measure_cem(bench: Bench, count: int, width: int, horizon: int) -> None:
    stack = made(width, ["state"], bench.device)
    tasks, _ = posed(stack, count, {"state": horizon}, bench.device)
    level: Any = stack.levels["state"]
    cell = plain_cell(level.predictor)
    planner = Cem(samples=SAMPLES, elites=ELITES, iterations=ITERATIONS, spread=SPREAD, floor=FLOOR)
    compare(bench, f"cem, {width} wide, tasks: {count}", lambda: tasks.plans(planner), lambda: plain_plans(tasks, cell))


def measure_hierarchical(bench: Bench, count: int, width: int, horizon: int) -> None:
    stack, planner = made(width, ["state", "leap"], bench.device), Hierarchical(inner=Cem)
    tasks, alone = posed(stack, count, {"state": horizon, "leap": horizon // LEAP["stride"]}, bench.device)
    name = f"hierarchical, {width} wide, tasks: {count}, beside one at a time"
    compare(bench, name, lambda: tasks.plans(planner), lambda: torch.cat([one.plans(planner) for one in alone]))


def measure(bench: Bench) -> None:
    making.keep_freed_memory()
    for count in (1, 2) if bench.quick else (1, 8):
        measure_cem(bench, count, *((16, 8) if bench.quick else (512, 16)))
    for width in (16,) if bench.quick else (64, 512):
        measure_hierarchical(bench, 2 if bench.quick else 8, width, 8 if bench.quick else 16)


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
