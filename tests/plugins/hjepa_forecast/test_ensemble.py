"""Several predictors as one: they learn from different samples, go on each for itself, and say how far they are apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hjepa import registry
from hjepa.contracts import Spec, States
from hjepa.stack import Stack
from hjepa.study import parse
from hjepa_forecast.causal import Causal
from hjepa_forecast.ensemble import Ensemble
from hjepa_forecast.mlp import StepMLP

SPEC = Spec(width=6, grid=(3,), ticks=tuple(range(5)), actions=2, condition=3, latent=4)


def build(kind: type, seed: int, **options: Any) -> Any:
    def of(spec: Spec) -> Any:
        torch.manual_seed(seed)
        made = kind(spec, **options)
        for weight in made.parameters():
            weight.data += 0.2 * torch.randn(weight.shape)
        return made

    return of


def made(training: bool = False, count: int = 3) -> Ensemble:
    kinds = [(StepMLP, {"hidden": 8}), (Causal, {"depth": 1, "heads": 2, "width": 8}), (StepMLP, {"hidden": 4})]
    return Ensemble(SPEC, members=[build(kind, seed, **of) for seed, (kind, of) in enumerate(kinds[:count])]).train(training)


def given(batch: int = 7) -> tuple[States, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    tokens, actions = torch.randn(batch, 5, 3, 6, generator=draw), torch.randn(batch, 4, 2, generator=draw)
    states = States(tokens, torch.arange(5).expand(batch, 5), (3,), actions=actions)
    return states, torch.randn(batch, 5, 3, generator=draw), torch.randn(batch, 4, 4, generator=draw)


def rolled(model: Ensemble, states: States, condition: Tensor, z: Tensor, steps: int) -> tuple[list[Tensor], Any]:
    carry, found = model.start(states.slice(0, 1), condition[:, :1]), []
    for step in range(steps):
        tokens, carry = model.step(carry, states.actions[:, step], condition[:, step : step + 1], z[:, step])  # type: ignore[index]
        found.append(tokens)
    return found, carry


def test_at_rest_it_says_the_mean_of_its_members() -> None:
    model, of = made(), given()
    expected = torch.stack([member(*of) for member in model.members]).mean(0)
    torch.testing.assert_close(model(*of), expected)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_while_training_every_sample_is_one_members(batch: int) -> None:
    model, of = made(training=True), given(batch)
    whole = [member(*of) for member in model.members]
    for sample, predicted in enumerate(model(*of)):
        torch.testing.assert_close(predicted, whole[sample % 3][sample])


def test_a_sample_teaches_the_member_whose_it_is_and_no_other() -> None:
    model, of = made(training=True), given()
    tokens, _ = rolled(model, *of, steps=2)
    (model(*of)[4] + tokens[-1][4]).square().sum().backward()
    taught = [
        sum(float(weight.grad.abs().sum()) for weight in one.parameters() if weight.grad is not None) for one in model.members
    ]
    assert taught[1] > 0 and taught[0] == taught[2] == 0


@pytest.mark.parametrize("training", [False, True])
def test_members_go_on_from_what_they_said_themselves(training: bool) -> None:
    model, of = made(training), given()
    found, _ = rolled(model, *of, steps=3)
    alone = []
    for member in model.members:
        one = Ensemble.__new__(Ensemble)
        torch.nn.Module.__init__(one)
        one.members, one.training = torch.nn.ModuleList([member]), False
        alone.append(rolled(one, *of, steps=3)[0])
    for step in range(3):
        told = torch.stack([each[step] for each in alone])
        expected = told[torch.arange(7) % 3, torch.arange(7)] if training else told.mean(0)
        torch.testing.assert_close(found[step], expected)


def test_doubt_is_how_far_its_members_are_apart() -> None:
    model, (states, condition, z) = made(), given()
    carry = model.start(states.slice(0, 1), condition[:, :1])
    assert not model.doubt(carry).any()
    _, carry = model.step(carry, states.actions[:, 0], None, z[:, 0])  # type: ignore[index]
    first = states.slice(0, 2), condition[:, :2], z[:, :1]
    told = torch.stack([member(*first)[:, 0] for member in model.members])
    torch.testing.assert_close(model.doubt(carry), told.var(0, correction=0).mean(-1))
    assert model.doubt(carry).shape == (7, 3) and (model.doubt(carry) > 0).all()


def test_rows_of_a_carry_can_be_chosen() -> None:
    """As a search does that keeps some plans and drops others."""
    model, (states, condition, z) = made(), given()
    carry = rolled(model, states, condition, z, 1)[1]
    rows = torch.tensor([5, 0, 0])
    some = tree_map(lambda leaf: leaf[rows], carry)
    lead = states.actions[:, 1], None, z[:, 1]  # type: ignore[index]
    whole, after = model.step(carry, *lead)
    part, chosen = model.step(some, *(of if of is None else of[rows] for of in lead))
    torch.testing.assert_close(part, whole[rows])
    torch.testing.assert_close(model.doubt(chosen), model.doubt(after)[rows])


def test_one_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="an ensemble of 1 never disagrees"):
        made(count=1)


def test_in_a_study_members_begin_with_different_weights_and_rollouts_say_their_doubt() -> None:
    level = {"name": "forecast", "encoder": {"name": "latent_mlp", "width": 4, "hidden": 8}, "energy": "l2", "rollout": 2}
    predictor = {"name": "ensemble", "members": [{"name": "mlp", "hidden": 4}, {"name": "mlp", "hidden": 4}]}
    plan = parse(
        {"data": {"world": {"name": "moving_digits"}}, "levels": {"low": level | {"predictor": predictor}}}, registry.load()
    )
    plan.complain()
    stack = Stack(plan, {"world": {"places": Spec(width=2, ticks=tuple(range(5)), actions=2)}})
    one, other = stack.level("low").predictor.members
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)
    states = States(torch.randn(3, 1, 1, 4), torch.zeros(3, 1, dtype=torch.int64))
    actions = torch.randn(3, 4, 2)
    assert stack.level("low").rollout(states, actions, 4).doubt is None
    rolled = stack.eval().level("low").rollout(states, actions, 4)
    assert rolled.doubt.shape == (3, 4, 1) and (rolled.doubt > 0).all()
    assert torch.equal(rolled.slice(1, 3).rows(torch.tensor([2])).doubt, rolled.doubt[2:, 1:3])
