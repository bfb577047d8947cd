"""The step-wise perceptron: each step from the one before it alone, and from what leads there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Spec, States
from hjepa_forecast.mlp import StepMLP

SPECS = {
    "plain": Spec(width=6, ticks=tuple(range(5))),
    "driven": Spec(width=6, grid=(3,), ticks=tuple(range(5)), actions=2, condition=3, latent=4),
}
DRAWN = {"seed": st.integers(0, 2**32), "name": st.sampled_from(sorted(SPECS)), "batch_norm": st.booleans()}


def _made(spec: Spec, seed: int = 0, **options: Any) -> StepMLP:
    """At rest, with statistics and weights that are nowhere trivial."""
    torch.manual_seed(seed)
    model = StepMLP(spec, hidden=16, **options)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape)
    model(*_given(spec, seed + 1))
    return model.eval()


def _given(spec: Spec, seed: int = 0, batch: int = 3) -> tuple[States, Tensor | None, Tensor | None]:
    draw = torch.Generator().manual_seed(seed)
    drawn = lambda steps, width: torch.randn(batch, steps, width, generator=draw) if width else None  # noqa: E731
    tokens = torch.randn(batch, 5, spec.tokens, spec.width, generator=draw)
    states = States(tokens, torch.arange(5).expand(batch, 5), spec.grid, actions=drawn(4, spec.actions))
    return states, drawn(5, spec.condition), drawn(4, spec.latent)


def _at(x: Tensor | None, step: int) -> Tensor | None:
    return None if x is None else x[:, step]


@given(**DRAWN, length=st.integers(1, 4))
def test_step_by_step_equals_all_at_once(seed: int, name: str, batch_norm: bool, length: int) -> None:
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, seed, batch_norm=batch_norm), _given(spec, seed)
    whole = model(states, condition, z)
    carry = model.start(states.slice(0, length), None if condition is None else condition[:, :length])
    predicted, carry = model.step(carry, _at(states.actions, length - 1), None, _at(z, length - 1))
    assert whole.shape == (3, 4, spec.tokens, 6)
    torch.testing.assert_close(predicted, whole[:, length - 1], atol=1e-5, rtol=1e-5)
    assert torch.equal(carry["last"], predicted)


@given(**DRAWN, step=st.integers(0, 3), what=st.sampled_from(["tokens", "actions", "condition", "z"]))
def test_what_belongs_to_a_step_leads_to_the_next_one_and_to_no_other(
    seed: int, name: str, batch_norm: bool, step: int, what: str
) -> None:
    """P28 and more: not one bit of any other prediction changes."""
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, seed, batch_norm=batch_norm), _given(spec, seed)
    found = {"tokens": states.tokens, "actions": states.actions, "condition": condition, "z": z}
    if found[what] is None:
        return
    other = found | {what: found[what].index_add(1, torch.tensor([step]), torch.ones_like(found[what][:, :1]))}
    changed = replace(states, tokens=other["tokens"], actions=other["actions"])
    same = model(states, condition, z) == model(changed, other["condition"], other["z"])
    assert same[:, [at for at in range(4) if at != step]].all()
    assert not same[:, step].all()


@pytest.mark.parametrize("name", SPECS)
def test_samples_and_tokens_are_independent_at_rest(name: str) -> None:
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, batch_norm=True), _given(spec)
    tokens = states.tokens.clone()
    tokens[1, :, -1] += 1
    same = (model(states, condition, z) == model(replace(states, tokens=tokens), condition, z)).all(-1)
    assert not same[1, :, -1].any()
    same[1, :, -1] = True
    assert same.all()


def test_none_is_zeros_for_z_and_a_condition_may_hold() -> None:
    spec = SPECS["driven"]
    model, (states, condition, z) = _made(spec), _given(spec)
    assert condition is not None and z is not None
    assert torch.equal(model(states, condition), model(states, condition, torch.zeros_like(z)))
    first = condition[:, :1]
    assert torch.equal(model(states, first), model(states, first.expand(-1, 5, -1)))
    carry = model.start(states, first)
    kept, changed = (model.step(carry, states.actions[:, 0], lead)[0] for lead in (None, first + 1))
    assert torch.equal(kept, model.step(carry, states.actions[:, 0], first)[0]) and not torch.allclose(kept, changed)


def test_statistics_of_the_batch_are_used_while_training() -> None:
    spec = SPECS["plain"]
    model, (states, _, _) = _made(spec, batch_norm=True).train(), _given(spec)
    first = model(replace(states, tokens=100 * states.tokens + 7))
    inner = model.layers[1](model.layers[0](100 * states.tokens + 7)).flatten(0, -2)
    assert first.isfinite().all()
    spread = (inner - model.layers[1].shift) / model.layers[1].scale
    torch.testing.assert_close(spread.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(spread.var(0, correction=0), torch.ones(16), atol=1e-3, rtol=0)


def test_a_single_row_is_predicted_as_at_rest() -> None:
    """One token of one sample has no statistics of its own."""
    spec = SPECS["plain"]
    model, (states, _, _) = _made(spec, batch_norm=True), _given(spec, batch=1)
    carry = model.start(states)
    at_rest = model.step(carry)[0]
    assert torch.equal(model.train().step(carry)[0], at_rest)
    assert torch.equal(model.eval().step(carry)[0], at_rest)


def test_a_new_predictor_nearly_copies_where_residual() -> None:
    states, _, _ = _given(SPECS["plain"])
    torch.manual_seed(0)
    change = StepMLP(SPECS["plain"])(states) - states.tokens[:, :-1]
    assert 0 < change.square().mean().sqrt() < 0.05
    assert (StepMLP(SPECS["plain"], residual=False)(states) - states.tokens[:, :-1]).square().mean().sqrt() > 0.3


def test_tokens_that_are_not_valid_have_no_influence() -> None:
    """P14: neither on the prediction nor on the gradient."""
    spec = Spec(width=6, grid=(3,), ticks=tuple(range(5)))
    model, (states, _, _) = _made(spec), _given(spec)
    valid = torch.rand(3, 5, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    noise = torch.where(valid[..., None], states.tokens, torch.nan).requires_grad_()
    masked = model(replace(states, tokens=noise, valid=valid))
    assert torch.equal(masked, model(replace(states, valid=valid)))
    masked.sum().backward()
    assert noise.grad is not None and not noise.grad[~valid].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_stays_finite(dtype: torch.dtype) -> None:
    """P14, and every weight learns."""
    spec = SPECS["driven"]
    model, given_ = _made(spec, batch_norm=True).train(), _given(spec, batch=1)
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        predicted = model(*given_)
    predicted.float().square().sum().backward()
    assert predicted.isfinite().all()
    assert all(weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any() for weight in model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    model, (states, condition, z) = _made(SPECS["driven"]), _given(SPECS["driven"])
    with pytest.raises(ValueError, match="action of width 2, and is given width 0"):
        model(replace(states, actions=None), condition, z)
    with pytest.raises(ValueError, match="condition of width 3, and is given width 0"):
        model(states, None, z)
    with pytest.raises(ValueError, match="z of width 0, and is given width 4"):
        _made(SPECS["plain"])(_given(SPECS["plain"])[0], None, z)
    with pytest.raises(ValueError, match="use an encoder that gives tokens"):
        StepMLP(Spec(maps=((3, 8, 8),)))
