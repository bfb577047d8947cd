"""The convolutional predictor: what happens somewhere follows from what is near there, the same everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Spec, States
from hjepa_forecast.conv import StepConv

STEPS, SIDE = 4, 9
SPECS = {
    "plain": Spec(width=6, grid=(SIDE, SIDE), ticks=tuple(range(STEPS))),
    "driven": Spec(width=6, grid=(SIDE, SIDE), ticks=tuple(range(STEPS)), actions=2, condition=3, latent=4),
}
DRAWN = {"seed": st.integers(0, 2**32), "name": st.sampled_from(sorted(SPECS)), "norm": st.booleans()}


def _made(spec: Spec, seed: int = 0, **options: Any) -> StepConv:
    """With weights that are nowhere trivial."""
    torch.manual_seed(seed)
    model = StepConv(spec, **{"width": 8, **options})
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape)
    return model


def _given(spec: Spec, seed: int = 0, batch: int = 2) -> tuple[States, Tensor | None, Tensor | None]:
    draw = torch.Generator().manual_seed(seed)
    drawn = lambda steps, width: torch.randn(batch, steps, width, generator=draw) if width else None  # noqa: E731
    tokens = torch.randn(batch, STEPS, spec.tokens, spec.width, generator=draw)
    states = States(tokens, torch.arange(STEPS).expand(batch, STEPS), spec.grid, actions=drawn(STEPS - 1, spec.actions))
    return states, drawn(STEPS, spec.condition), drawn(STEPS - 1, spec.latent)


def _at(x: Tensor | None, step: int) -> Tensor | None:
    return None if x is None else x[:, step]


@given(**DRAWN, length=st.integers(1, STEPS - 1))
def test_step_by_step_equals_all_at_once(seed: int, name: str, norm: bool, length: int) -> None:
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, seed, norm=norm), _given(spec, seed)
    whole = model(states, condition, z)
    carry = model.start(states.slice(0, length), None if condition is None else condition[:, :length])
    predicted, carry = model.step(carry, _at(states.actions, length - 1), None, _at(z, length - 1))
    assert whole.shape == (2, STEPS - 1, SIDE * SIDE, 6)
    torch.testing.assert_close(predicted, whole[:, length - 1], atol=1e-4, rtol=1e-4)
    assert torch.equal(carry["last"], predicted)


@given(**DRAWN, step=st.integers(0, STEPS - 2), what=st.sampled_from(["tokens", "actions", "condition", "z"]))
def test_what_belongs_to_a_step_leads_to_the_next_one_and_to_no_other(
    seed: int, name: str, norm: bool, step: int, what: str
) -> None:
    """P28."""
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, seed, norm=norm), _given(spec, seed)
    found = {"tokens": states.tokens, "actions": states.actions, "condition": condition, "z": z}
    if found[what] is None:
        return
    other = found | {what: found[what].index_add(1, torch.tensor([step]), torch.ones_like(found[what][:, :1]))}
    changed = replace(states, tokens=other["tokens"], actions=other["actions"])
    apart = (model(states, condition, z) - model(changed, other["condition"], other["z"])).abs().amax((0, 2, 3))
    assert apart[step] > 1e-3
    assert (apart[[at for at in range(STEPS - 1) if at != step]] < 1e-5).all()


@pytest.mark.parametrize(("depth", "kernel"), [(1, 3), (2, 3), (1, 5)])
def test_only_what_is_near_counts(depth: int, kernel: int) -> None:
    model, (states, _, _) = _made(SPECS["plain"], depth=depth, kernel=kernel), _given(SPECS["plain"])
    tokens = states.tokens.clone()
    tokens[:, :, 4 * SIDE + 4] += 1
    apart = (model(states) - model(replace(states, tokens=tokens))).abs().amax((0, 1, 3)).view(SIDE, SIDE)
    reach = (depth + 1) * (kernel // 2)
    near = slice(4 - reach, 5 + reach)
    assert (apart[near, near] > 1e-6).all()
    apart[near, near] = 0
    assert (apart < 1e-6).all()


def test_a_rule_that_holds_in_one_place_holds_in_all() -> None:
    model, (states, condition, z) = _made(SPECS["driven"], depth=1), _given(SPECS["driven"])
    grid = states.tokens.view(2, STEPS, SIDE, SIDE, 6)
    moved = replace(states, tokens=grid.roll((2, 1), (2, 3)).flatten(2, 3))
    here, there = (model(one, condition, z).view(2, STEPS - 1, SIDE, SIDE, 6) for one in (states, moved))
    torch.testing.assert_close(here[:, :, 2:5, 2:5], there[:, :, 4:7, 3:6], atol=1e-5, rtol=1e-4)


def test_at_the_start_it_nearly_copies_the_last_step() -> None:
    torch.manual_seed(0)
    states, condition, z = _given(SPECS["driven"])
    for residual, least, most in ((True, 0.0, 0.01), (False, 0.5, 9.0)):
        change = (StepConv(SPECS["driven"], residual=residual)(states, condition, z) - states.tokens[:, :-1]).square().mean()
        assert least < change < most


def test_with_a_norm_every_token_is_as_encoders_end() -> None:
    tokens = _made(SPECS["driven"], norm=True)(*_given(SPECS["driven"]))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:3]), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(tokens.shape[:3]), atol=1e-3, rtol=0)


def test_tokens_that_are_not_valid_have_no_influence() -> None:
    """P14."""
    model, (states, _, _) = _made(SPECS["plain"]), _given(SPECS["plain"])
    valid = torch.rand(states.tokens.shape[:3], generator=torch.Generator().manual_seed(1)) < 0.5
    noise = torch.where(valid[..., None], states.tokens, torch.nan)
    assert torch.equal(model(replace(states, tokens=noise, valid=valid)), model(replace(states, valid=valid)))


def test_gradient_reaches_every_action_of_a_plan_and_every_weight() -> None:
    model, (states, condition, z) = _made(SPECS["driven"], norm=True), _given(SPECS["driven"])
    carry = model.start(states.slice(0, 1), condition[:, :1])
    actions = torch.zeros(2, 3, 2, requires_grad=True)
    for step in range(3):
        tokens, carry = model.step(carry, actions[:, step], None, z[:, step])
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert actions.grad.abs().sum(-1).gt(0).all()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in model.parameters())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens that lie in a plane; those that it is given lie as \[4\]"):
        StepConv(Spec(width=4, grid=(4,)))
    with pytest.raises(ValueError, match="kernel is 4"):
        StepConv(SPECS["plain"], kernel=4)
    with pytest.raises(ValueError, match="conv is made for action of width 2, and is given width 0"):
        _made(SPECS["driven"])(_given(SPECS["plain"])[0])
