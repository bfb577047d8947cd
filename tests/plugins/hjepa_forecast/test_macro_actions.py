"""Every macro-action: what it makes of a chunk, which plans it allows, and levels that are led by it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa import checkpoint, control, registry, runs, stack, study
from hjepa import train as training
from hjepa.contracts import ActionSpace, Cost, Spec, States
from hjepa.errors import StudyMistake
from hjepa.nn.states import window_spec
from hjepa.randomness import Key
from hjepa.train import Trainer
from hjepa_forecast.macro_mlp import MacroMLP
from hjepa_forecast.macro_transformer import MacroTransformer
from hjepa_forecast.sum import Sum

SPEC = Spec(width=5, ticks=(0, 3, 6), actions=6, joined=3)
MADE: dict[str, Any] = {"sum": Sum, "mlp": MacroMLP, "transformer": MacroTransformer}
BOUNDED = ActionSpace(torch.tensor([-1.0, -2.0]).repeat(3), torch.tensor([1.0, 0.5]).repeat(3))
every = pytest.mark.parametrize("name", MADE)
learned = pytest.mark.parametrize("name", ["mlp", "transformer"])


def made(name: str, spec: Spec = SPEC, **options: Any) -> Any:
    torch.manual_seed(0)
    return MADE[name](spec, **options)


def chunks(*shape: int, seed: int = 0, width: int = 6) -> Tensor:
    return torch.randn(*shape, width, generator=torch.Generator().manual_seed(seed))


def test_a_sum_is_that_of_the_actions_side_by_side() -> None:
    given = torch.tensor([[1.0, 10.0, 2.0, 20.0, 3.0, 30.0]])
    assert made("sum")(given).tolist() == [[6.0, 60.0]] and made("sum").width == 2
    space = made("sum", anchors=0).space(BOUNDED)
    assert space.low.tolist() == [-3.0, -6.0] and space.high.tolist() == [3.0, 1.5] and space.anchors is None


@every
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_each_chunk_is_read_by_itself(name: str, seed: int, batch: int, steps: int, joined: int) -> None:
    """Whatever lies beside it, and at rest nothing is remembered."""
    macro = made(name, Spec(actions=2 * joined, joined=joined)).eval()
    given_ = chunks(batch, steps, seed=seed, width=2 * joined)
    out = macro(given_)
    assert out.shape == (batch, steps, macro.width) and out.isfinite().all()
    torch.testing.assert_close(macro(given_[-1, -1]), out[-1, -1])
    bounds = torch.ones(2 * joined)
    assert macro.space(ActionSpace(-bounds, bounds)).anchors is None


@learned
def test_what_is_learned_is_bounded_however_large_actions_are(name: str) -> None:
    macro = made(name, width=3)
    out = macro(1e4 * chunks(4, 2))
    assert out.shape == (4, 2, 3) and (out.abs() <= 1).all() and macro(chunks(4, 2)).std() > 0.2
    empty = made(name, width=3).space(BOUNDED)
    assert empty.low.tolist() == [-1.0] * 3 and empty.high.tolist() == [1.0] * 3


@learned
def test_every_weight_learns_and_order_matters(name: str) -> None:
    macro, given_ = made(name), chunks(4, 2)
    macro(given_).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in macro.parameters())
    swapped = given_.unflatten(-1, (3, 2)).flip(2).flatten(-2)
    assert not torch.allclose(macro(given_), macro(swapped), atol=1e-3)


@every
def test_plans_are_made_of_chunks_that_were_seen_as_they_are_encoded_now(name: str) -> None:
    macro, given_ = made(name, anchors=12), chunks(4, 5)
    for _ in range(20):
        macro(given_)
    with torch.no_grad():
        for weight in macro.parameters():
            weight += 0.1
        now = macro.eval()(given_.flatten(0, 1))
    space = macro.space(BOUNDED)
    assert space.anchors.shape == (12, macro.width) and not space.anchors.requires_grad
    assert torch.cdist(space.anchors, now).amin(1).max() < 1e-5
    assert torch.equal(space.low, space.anchors.amin(0)) and torch.equal(space.high, space.anchors.amax(0))


@every
def test_a_chunk_without_actions_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} makes one action of several"):
        made(name, Spec(width=4))


def test_heads_must_share_the_transformer() -> None:
    with pytest.raises(ValueError, match="dim is 30: write an even number that 4 heads can share"):
        made("transformer", dim=30)


def test_a_window_joins_what_it_reads_and_not_what_was_joined_below() -> None:
    low = window_spec(Spec(width=3, ticks=tuple(range(24)), actions=2), 4, 4)
    assert (low.actions, low.joined) == (8, 4)
    own = low.giving(5)
    assert (own.actions, own.joined) == (8, 1)
    assert (window_spec(own, 3, 3).actions, window_spec(own, 3, 3).joined) == (24, 3)
    assert window_spec(low, 3, 3).joined == 3
    assert window_spec(Spec(width=3, ticks=tuple(range(24))), 4, 4).joined == 1


# --- levels that are led by them --------------------------------------------------------------------------------------

LEVEL: dict[str, Any] = {
    "name": "forecast",
    "predictor": "mlp",
    "energy": "l2",
    "prevention": ["stop_gradient"],
}
WORLD = ActionSpace(-2 * torch.ones(2), 2 * torch.ones(2))


def stacked(*names: str, **more: Any) -> study.Study:
    """A level on every frame, and above it one level of stride 2 for each name."""
    low = {**LEVEL, "encoder": {"name": "conv", "width": 5, "base": 2, "stages": 4}}
    above = {**LEVEL, "stride": 2, "encoder": {"name": "latent_mlp", "width": 5, "hidden": 8, "depth": 1}}
    levels = {"low": low} | {
        f"level{number}": {**above, "macro_action": {"name": name, "anchors": 20} if isinstance(name, str) else name}
        for number, name in enumerate(names)
    }
    source = {"name": "trajectories", "of": "two_rooms", "frames": 9, "samples": 16, "held_out": 2, "batch": 4}
    train = {"steps": 2, "checkpoint_every": 1, "log_every": 1, "keep": 3, "diagnose_every": 100}
    plan = study.parse({"data": {"walks": source}, "levels": levels, "train": train, **more}, registry.load())
    plan.complain()
    return plan


def trained(plan: study.Study, folder: Path, resume: bool = False) -> dict[str, Tensor]:
    nothing: Any = lambda *said: None  # noqa: E731
    run = runs.reopen(plan, folder) if resume else runs.create(plan, folder, registry.load())
    training.train(plan, run, registry.load(), resume, nothing, nothing, nothing)
    return checkpoint.load(folder / "checkpoints" / "step-00000002").tensors


def loaded(plan: study.Study, folder: Path) -> stack.Stack:
    trainer = Trainer(plan, runs.Run(folder), registry.load(), lambda said: None)
    trainer.restore(checkpoint.newest(folder / "checkpoints", lambda said: None))
    return trainer.stack.eval()


class End:
    """How far the last state is from the goal, where there is one."""

    def __call__(self, trajectory: States, goal: States | None, start: States) -> Cost:
        wanted = trajectory.tokens[:, -1] if goal is None else goal.tokens[:, 0]
        away = (trajectory.tokens[:, -1] - wanted).square().mean((1, 2))
        return Cost(away, 0 * away)


def planned(levels: stack.Stack, *labels: str) -> tuple[control.Problem, Any]:
    """A plan from the top down, for two tasks."""
    draw = torch.Generator().manual_seed(0)
    first, goal = ({"frames": torch.rand(2, 9, 2, 65, 65, generator=draw), "actions": torch.randn(2, 8, 2)} for _ in "ab")
    costs: dict[str, list[control.Weighted]] = {label: [(End(), 1.0)] for label in labels}
    problem = control.problem(levels, "walks", dict.fromkeys(labels, 2), first, goal, costs, WORLD)
    inner = lambda: registry.load().find("planner", "cem").load()(samples=16, elites=4, iterations=2)  # noqa: E731
    planner = registry.load().find("planner", "hierarchical").load()(inner=inner)
    return problem, planner.plan(problem, None, Key.of(0).fold(torch.arange(2)))


@every
def test_a_stack_of_two_levels_trains_resumes_and_plans(name: str, tmp_path: Path) -> None:
    plan = stacked(name)
    assert all(tensor.is_meta for tensor in stack.check(plan).state_dict().values())
    whole = trained(plan, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000002")
    resumed = trained(plan, tmp_path / "again", resume=True)
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
    kept = next(tensor for key, tensor in whole.items() if key.endswith("macro_action.anchors.chunks"))
    assert (kept[:4].abs().sum(1) > 0).all() and not kept[4:].any(), "two of 20 a step"
    levels = loaded(plan, tmp_path / "run")
    problem, found = planned(levels, "low", "level0")
    assert problem.above is not None and problem.above.space.anchors is not None
    torch.testing.assert_close(problem.above.space.anchors, levels.level("level0").macro_action(kept[:4]))
    assert found.actions.shape == (2, 2, 2) and (found.actions.abs() <= 2).all()


def test_macro_actions_are_joined_to_macro_actions(tmp_path: Path) -> None:
    """Three levels: the highest makes one of two macro-actions, and of nothing that is below these."""
    plan = stacked("mlp", "transformer")
    trained(plan, tmp_path / "run")
    levels = loaded(plan, tmp_path / "run")
    low, high = (levels.level(label).macro_action for label in ("level0", "level1"))
    assert (low.width, high.joined, high.anchors.chunks.shape[1]) == (4, 2, 8)
    assert (high.anchors.chunks.abs() <= 1).all() and high.anchors.seen == 4
    problem, found = planned(levels, "low", "level0", "level1")
    assert problem.above is not None and problem.above.above is not None
    assert problem.above.above.space.low.shape == (4,) and found.actions.shape == (2, 2, 2)


def test_a_macro_action_is_shared_by_levels_that_join_the_same() -> None:
    shared = {"share": "level0.macro_action"}
    with pytest.raises(StudyMistake, match=r"actions of width 4, 2 side by side, this .*actions of width 8, 2 side by side"):
        stack.check(stacked("mlp", shared))
    stack.check(stacked("sum", shared))
