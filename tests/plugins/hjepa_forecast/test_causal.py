"""The causal predictor: nothing comes from the future, and step by step is the same as all at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from hjepa.contracts import Spec, States
from hjepa_forecast.causal import Causal

SPECS = {
    "plain": Spec(width=6, ticks=tuple(range(6))),
    "grid": Spec(width=6, grid=(2, 2), ticks=tuple(range(6))),
    "driven": Spec(width=6, grid=(3,), ticks=tuple(range(6)), actions=2, condition=3),
}
DRAWN = {"seed": st.integers(0, 2**32), "name": st.sampled_from(sorted(SPECS))}
close = {"atol": 1e-5, "rtol": 1e-5}


def _awake(spec: Spec, seed: int = 0, **options: Any) -> Causal:
    """With weights that are nowhere 0, so that nothing is hidden by a closed gate."""
    torch.manual_seed(seed)
    model = Causal(spec, width=16, heads=2, **options)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape)
    return model


def _case(name: str, seed: int = 0, batch: int = 3) -> tuple[Causal, States, Tensor | None]:
    spec, draw = SPECS[name], torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, 6, spec.tokens, spec.width, generator=draw)
    actions = torch.randn(batch, 5, spec.actions, generator=draw) if spec.actions else None
    condition = torch.randn(batch, 6, spec.condition, generator=draw) if spec.condition else None
    states = States(tokens, torch.arange(6).expand(batch, 6), spec.grid, actions=actions)
    return _awake(spec, seed), states, condition


def _until(condition: Tensor | None, stop: int) -> Tensor | None:
    return None if condition is None else condition[:, :stop]


def _action(states: States, step: int) -> Tensor | None:
    return None if states.actions is None else states.actions[:, step]


def _rolled(model: Causal, carry: Any, states: States, start: int, stop: int) -> tuple[Tensor, Any]:
    predicted = []
    for step in range(start, stop):
        tokens, carry = model.step(carry, _action(states, step))
        predicted.append(tokens)
    return torch.stack(predicted, dim=1), carry


@settings(deadline=None, max_examples=30)
@given(**DRAWN, length=st.integers(1, 5))
def test_step_by_step_equals_all_at_once(seed: int, name: str, length: int) -> None:
    model, states, condition = _case(name, seed)
    carry = model.start(states.slice(0, length), _until(condition, length))
    predicted, _ = model.step(carry, _action(states, length - 1))
    torch.testing.assert_close(predicted, model(states, condition)[:, length - 1], **close)


@settings(deadline=None, max_examples=30)
@given(**DRAWN, start=st.integers(1, 5))
def test_stepping_on_equals_starting_later(seed: int, name: str, start: int) -> None:
    """The cache of a carry that stepped is that of one which started from the same states."""
    model, states, condition = _case(name, seed)
    condition = None if condition is None else condition[:, :1].expand(-1, 6, -1)
    predicted, carry = _rolled(model, model.start(states.slice(0, 1), _until(condition, 1)), states, 0, start)
    seen = torch.cat((states.tokens[:, :1], predicted), dim=1)
    again = model.start(replace(states.slice(0, start + 1), tokens=seen), _until(condition, start + 1))
    for one, other in zip(tree_leaves(carry), tree_leaves(again), strict=True):
        torch.testing.assert_close(one, other, **close)


@settings(deadline=None, max_examples=30)
@given(**DRAWN, change=st.integers(1, 5))
def test_the_future_changes_no_bit(seed: int, name: str, change: int) -> None:
    """P28: other states, actions and conditions from step `change` on leave the predictions up to it alone."""
    model, states, condition = _case(name, seed)
    other, _ = _case(name, seed + 1)[1:]
    tokens = torch.cat((states.tokens[:, :change], other.tokens[:, change:]), dim=1)
    actions = None if states.actions is None else torch.cat((states.actions[:, :change], 9 + states.actions[:, change:]), dim=1)
    conditions = None if condition is None else torch.cat((condition[:, :change], 9 + condition[:, change:]), dim=1)
    before = model(states, condition)
    after = model(replace(states, tokens=tokens, actions=actions), conditions)
    assert torch.equal(before[:, :change], after[:, :change])
    assert change == 5 or not torch.isclose(before[:, change:], after[:, change:]).all()


@settings(deadline=None, max_examples=30)
@given(**DRAWN, start=st.integers(1, 3), pause=st.integers(1, 2))
def test_a_rollout_can_be_interrupted(seed: int, name: str, start: int, pause: int) -> None:
    """P29, to the last bit."""
    model, states, condition = _case(name, seed)
    carry = model.start(states.slice(0, start), _until(condition, start))
    whole, _ = _rolled(model, carry, states, start - 1, 5)
    first, carry = _rolled(model, carry, states, start - 1, start - 1 + pause)
    second, _ = _rolled(model, carry, states, start - 1 + pause, 5)
    assert torch.equal(whole, torch.cat((first, second), dim=1))


@pytest.mark.parametrize("name", SPECS)
def test_samples_are_independent(name: str) -> None:
    """Another order of the batch gives the same predictions in that order, of the carry too."""
    model, states, condition = _case(name)
    order = torch.tensor([2, 0, 1])
    other = replace(states, tokens=states.tokens[order], actions=None if states.actions is None else states.actions[order])
    other_condition = None if condition is None else condition[order]
    torch.testing.assert_close(model(states, condition)[order], model(other, other_condition), **close)
    carry = tree_map(lambda leaf: leaf[order], model.start(states, condition))
    action = None if states.actions is None else states.actions[:, 0]
    shuffled, _ = model.step(carry, None if action is None else action[order])
    torch.testing.assert_close(model.step(model.start(states, condition), action)[0][order], shuffled, **close)


@pytest.mark.parametrize("name", SPECS)
def test_gradient_flows_through_a_rollout(name: str) -> None:
    model, states, condition = _case(name)
    tokens = states.tokens[:, :2].clone().requires_grad_()
    carry = model.start(replace(states.slice(0, 2), tokens=tokens), _until(condition, 2))
    _rolled(model, carry, states, 1, 5)[0][:, -1].square().sum().backward()
    assert tokens.grad is not None and tokens.grad.abs().sum((-1, -2)).gt(0).all()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_gradient_reaches_every_action_of_a_plan() -> None:
    model, states, condition = _case("driven")
    actions = torch.zeros(3, 4, 2, requires_grad=True)
    carry = model.start(states.slice(0, 1), _until(condition, 1))
    for action in actions.unbind(1):
        tokens, carry = model.step(carry, action)
    tokens.square().sum().backward()
    assert actions.grad is not None and actions.grad.abs().sum(-1).gt(0).all()


def test_an_action_leads_to_the_step_after_it() -> None:
    model, states, condition = _case("driven")
    assert states.actions is not None
    actions = states.actions.index_fill(1, torch.tensor([2]), 5.0)
    changed = (model(states, condition) != model(replace(states, actions=actions), condition)).flatten(2).any(-1)
    assert changed.tolist() == [[False, False, True, True, True]] * 3


def test_tokens_of_one_step_see_each_other() -> None:
    model, states, _ = _case("grid")
    tokens = states.tokens.clone()
    tokens[:, 2, 3] += 1
    changed = (model(states) != model(replace(states, tokens=tokens))).any(-1)
    assert changed[:, 2].all() and not changed[:, :2].any()


def test_places_within_a_step_are_told_apart() -> None:
    model, states, _ = _case("grid")
    order = torch.tensor([1, 0, 2, 3])
    swapped = model(replace(states, tokens=states.tokens[:, :, order]))
    assert not torch.allclose(swapped, model(states)[:, :, order], atol=1e-3)


def test_the_order_of_steps_matters() -> None:
    _, states, _ = _case("plain")
    model, swapped = _awake(SPECS["plain"], depth=1), states.tokens[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(model(replace(states, tokens=swapped))[:, 2:], model(states)[:, 2:], atol=1e-3)


def test_a_new_predictor_nearly_copies() -> None:
    torch.manual_seed(0)
    _, states, _ = _case("plain")
    change = Causal(SPECS["plain"])(states) - states.tokens[:, :-1]
    assert 0 < change.square().mean().sqrt() < 0.05
    assert (Causal(SPECS["plain"], residual=False)(states) - states.tokens[:, :-1]).square().mean().sqrt() > 0.3


def test_a_new_predictor_nearly_copies_gradients_too() -> None:
    torch.manual_seed(0)
    model, (_, states, _) = Causal(SPECS["plain"]), _case("plain")
    tokens = states.tokens.clone().requires_grad_()
    _rolled(model, model.start(replace(states, tokens=tokens)), states, 0, 4)[0][:, -1].sum().backward()
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad[:, -1], torch.ones(3, 1, 6), atol=0.3, rtol=0)


def test_one_step_starts_a_rollout_without_actions_before_it() -> None:
    model, states, condition = _case("driven")
    bare, with_none = replace(states.slice(0, 1), actions=None), states.slice(0, 1)
    assert model(with_none, _until(condition, 1)).shape == (3, 0, 3, 6)
    one, _ = model.step(model.start(bare, _until(condition, 1)), _action(states, 0))
    torch.testing.assert_close(one, model(states, condition)[:, 0], **close)


def test_a_condition_may_hold_for_all_steps() -> None:
    model, states, condition = _case("driven")
    assert condition is not None
    first = condition[:, :1]
    assert torch.equal(model(states, first), model(states, first.expand(-1, 6, -1)))
    kept, _ = model.step(model.start(states, first), _action(states, 0))
    given, _ = model.step(model.start(states, first), _action(states, 0), first)
    changed, _ = model.step(model.start(states, first), _action(states, 0), first + 1)
    assert torch.equal(kept, given) and not torch.allclose(kept, changed)


def test_a_latent_leads_too_and_none_is_zeros() -> None:
    _, states, _ = _case("plain")
    model = _awake(replace(SPECS["plain"], latent=4))
    z = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(states), model(states, z=torch.zeros(3, 5, 4)))
    drawn, _ = model.step(model.start(states.slice(0, 1)), z=z[:, 0])
    torch.testing.assert_close(drawn, model(states, z=z)[:, 0], **close)
    assert not torch.allclose(drawn, model(states)[:, 0])


def test_what_leads_must_be_what_it_was_made_for() -> None:
    plain, states, _ = _case("plain")
    with pytest.raises(ValueError, match="z of width 0, and is given width 4"):
        plain(states, z=torch.zeros(3, 5, 4))
    driven, states, condition = _case("driven")
    with pytest.raises(ValueError, match="action of width 2, and is given width 0"):
        driven(replace(states, actions=None), condition)
    with pytest.raises(ValueError, match="condition of width 3, and is given width 0"):
        driven(states)


def test_tokens_that_are_not_valid_have_no_influence() -> None:
    """P14: neither on the prediction nor on the gradient."""
    model, states, _ = _case("grid")
    valid = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    noise = torch.where(valid[..., None], states.tokens, torch.nan).requires_grad_()
    masked = model(replace(states, tokens=noise, valid=valid))
    assert torch.equal(masked, model(replace(states, valid=valid)))
    masked.sum().backward()
    assert noise.grad is not None and not noise.grad[~valid].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_stays_finite(dtype: torch.dtype) -> None:
    model, states, condition = _case("driven", batch=1)
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        at_once = model(states, condition)
        predicted, _ = model.step(model.start(states.slice(0, 3), _until(condition, 3)), _action(states, 2))
    at_once.float().square().sum().backward()
    assert at_once.isfinite().all() and all(weight.grad.isfinite().all() for weight in model.parameters())
    tolerance = 0.1 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(predicted, at_once[:, 2], atol=tolerance, rtol=tolerance)


def test_the_inner_width_fits_its_heads() -> None:
    assert Causal(Spec(width=6)).width == 64
    assert Causal(Spec(width=100), heads=3).width == 102
    with pytest.raises(ValueError, match="width 30 is not a multiple of 8"):
        Causal(Spec(width=6), width=30)


def test_states_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="use an encoder that gives tokens"):
        Causal(Spec(maps=((3, 8, 8),)))
