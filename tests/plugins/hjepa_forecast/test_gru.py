"""The gated unit: each step from the one before it alone, whose numbers are what it remembers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Spec, States
from hjepa_forecast.gru import GRU

STEPS = 6
SPECS = {
    "plain": Spec(width=6, ticks=tuple(range(STEPS))),
    "acted": Spec(width=6, ticks=tuple(range(STEPS)), actions=2),
    "driven": Spec(width=6, grid=(3,), ticks=tuple(range(STEPS)), actions=2, condition=3, latent=4),
}
DRAWN = {
    "seed": st.integers(0, 2**32),
    "name": st.sampled_from(sorted(SPECS)),
    "hidden": st.sampled_from([0, 5]),
    "norm": st.booleans(),
}


def _made(spec: Spec, seed: int = 0, **options: Any) -> GRU:
    """With weights that are nowhere trivial."""
    torch.manual_seed(seed)
    model = GRU(spec, **options)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn(weight.shape)
    return model


def _given(spec: Spec, seed: int = 0, batch: int = 3) -> tuple[States, Tensor | None, Tensor | None]:
    draw = torch.Generator().manual_seed(seed)
    drawn = lambda steps, width: torch.randn(batch, steps, width, generator=draw) if width else None  # noqa: E731
    tokens = torch.randn(batch, STEPS, spec.tokens, spec.width, generator=draw)
    states = States(tokens, torch.arange(STEPS).expand(batch, STEPS), spec.grid, actions=drawn(STEPS - 1, spec.actions))
    return states, drawn(STEPS, spec.condition), drawn(STEPS - 1, spec.latent)


def _at(x: Tensor | None, step: int) -> Tensor | None:
    return None if x is None else x[:, step]


def _rolled(model: GRU, carry: Any, states: States, z: Tensor | None, start: int, stop: int) -> tuple[Tensor, Any]:
    predicted = []
    for step in range(start, stop):
        tokens, carry = model.step(carry, _at(states.actions, step), None, _at(z, step))
        predicted.append(tokens)
    return torch.stack(predicted, dim=1), carry


@given(**DRAWN, length=st.integers(1, STEPS - 1))
def test_step_by_step_equals_all_at_once(seed: int, name: str, hidden: int, norm: bool, length: int) -> None:
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, seed, hidden=hidden, norm=norm), _given(spec, seed)
    whole = model(states, condition, z)
    carry = model.start(states.slice(0, length), None if condition is None else condition[:, :length])
    predicted, carry = model.step(carry, _at(states.actions, length - 1), None, _at(z, length - 1))
    assert whole.shape == (3, STEPS - 1, spec.tokens, 6)
    torch.testing.assert_close(predicted, whole[:, length - 1], atol=1e-5, rtol=1e-5)
    assert torch.equal(carry["last"], predicted)


@given(**DRAWN, start=st.integers(1, 3), pause=st.integers(1, 2))
def test_a_rollout_can_be_interrupted(seed: int, name: str, hidden: int, norm: bool, start: int, pause: int) -> None:
    """P29: from its carry to the last bit, and from the states that it gave."""
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, seed, hidden=hidden, norm=norm), _given(spec, seed)
    held = None if condition is None else condition[:, :1]
    carry = model.start(states.slice(0, start), held)
    whole, _ = _rolled(model, carry, states, z, start - 1, 5)
    first, carry = _rolled(model, carry, states, z, start - 1, start - 1 + pause)
    second, _ = _rolled(model, carry, states, z, start - 1 + pause, 5)
    assert torch.equal(whole, torch.cat((first, second), dim=1))
    again = model.start(replace(states, tokens=first, time=states.time[:, :pause], actions=None), held)
    later, _ = _rolled(model, again, states, z, start - 1 + pause, 5)
    torch.testing.assert_close(second, later, atol=1e-5, rtol=1e-5)


@given(**DRAWN, step=st.integers(0, STEPS - 2), what=st.sampled_from(["tokens", "actions", "condition", "z"]))
def test_what_belongs_to_a_step_leads_to_the_next_one_and_to_no_other(
    seed: int, name: str, hidden: int, norm: bool, step: int, what: str
) -> None:
    """P28 and more: not one bit of any other prediction changes."""
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, seed, hidden=hidden, norm=norm), _given(spec, seed)
    found = {"tokens": states.tokens, "actions": states.actions, "condition": condition, "z": z}
    if found[what] is None:
        return
    other = found | {what: found[what].index_add(1, torch.tensor([step]), torch.ones_like(found[what][:, :1]))}
    changed = replace(states, tokens=other["tokens"], actions=other["actions"])
    same = model(states, condition, z) == model(changed, other["condition"], other["z"])
    assert same[:, [at for at in range(STEPS - 1) if at != step]].all()
    assert not same[:, step].all()


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("name", SPECS)
def test_samples_and_tokens_are_independent(name: str, hidden: int) -> None:
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, hidden=hidden), _given(spec)
    tokens = states.tokens.clone()
    tokens[1, :, -1] += 1
    same = (model(states, condition, z) == model(replace(states, tokens=tokens), condition, z)).all(-1)
    assert not same[1, :, -1].any()
    same[1, :, -1] = True
    assert same.all()


def test_it_is_the_unit_that_torch_has() -> None:
    model, (states, _, _) = _made(SPECS["acted"]), _given(SPECS["acted"])
    assert model.of_read is not None and states.actions is not None
    unit = torch.nn.GRUCell(2, 6)
    pairs = [(unit.weight_hh, model.of_state.weight), (unit.bias_hh, model.of_state.bias)]
    pairs += [(unit.weight_ih, model.of_read.weight), (unit.bias_ih, model.of_read.bias)]
    for theirs, ours in pairs:
        theirs.data = ours.data
    expected = unit(states.actions.flatten(0, 1), states.tokens[:, :-1, 0].flatten(0, 1)).view(3, STEPS - 1, 1, 6)
    torch.testing.assert_close(model(states), expected)


def test_a_new_predictor_keeps_most_of_the_last_step() -> None:
    torch.manual_seed(0)
    spec = Spec(width=64, ticks=tuple(range(STEPS)), actions=2)
    states, _, _ = _given(spec)
    model = GRU(spec)
    change, kept = (model(states) - states.tokens[:, :-1]).square().mean(), states.tokens.square().mean()
    assert 0.01 * kept < change < 0.2 * kept


@pytest.mark.parametrize("hidden", [0, 5])
def test_with_a_norm_every_token_is_as_encoders_end(hidden: int) -> None:
    spec = SPECS["driven"]
    model, given_ = _made(spec, hidden=hidden, norm=True), _given(spec)
    carry = model.start(given_[0].slice(0, 1), given_[1][:, :1])
    for tokens in (model(*given_), _rolled(model, carry, given_[0], given_[2], 0, 5)[0]):
        torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:3]), atol=1e-5, rtol=0)
        torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(tokens.shape[:3]), atol=1e-3, rtol=0)


@given(**(DRAWN | {"norm": st.just(False)}), scale=st.floats(0.1, 10))
def test_without_a_norm_a_rollout_stays_where_it_began(seed: int, name: str, hidden: int, norm: bool, scale: float) -> None:
    spec = SPECS[name]
    model, (states, condition, z) = _made(spec, seed, hidden=hidden, norm=norm), _given(spec, seed)
    states = replace(states, tokens=scale * states.tokens)
    rolled, _ = _rolled(
        model, model.start(states.slice(0, 1), None if condition is None else condition[:, :1]), states, z, 0, 5
    )
    assert (rolled.abs() <= states.tokens[:, :1].abs().clamp(min=1) + 1e-5).all()


def test_none_is_zeros_for_z_and_a_condition_may_hold() -> None:
    spec = SPECS["driven"]
    model, (states, condition, z) = _made(spec), _given(spec)
    assert condition is not None and z is not None
    assert torch.equal(model(states, condition), model(states, condition, torch.zeros_like(z)))
    first = condition[:, :1]
    assert torch.equal(model(states, first), model(states, first.expand(-1, STEPS, -1)))
    carry = model.start(states, first)
    kept, changed = (model.step(carry, states.actions[:, 0], lead)[0] for lead in (None, first + 1))
    assert torch.equal(kept, model.step(carry, states.actions[:, 0], first)[0]) and not torch.allclose(kept, changed)


def test_gradient_reaches_every_action_of_a_plan() -> None:
    model, (states, condition, _) = _made(SPECS["driven"]), _given(SPECS["driven"])
    actions = torch.zeros(3, 5, 2, requires_grad=True)
    rolled, _ = _rolled(model, model.start(states.slice(0, 1), condition[:, :1]), replace(states, actions=actions), None, 0, 5)
    rolled[:, -1].square().sum().backward()
    assert actions.grad is not None and actions.grad.abs().sum(-1).gt(0).all()


@pytest.mark.parametrize("hidden", [0, 5])
def test_tokens_that_are_not_valid_have_no_influence(hidden: int) -> None:
    """P14: neither on the prediction nor on the gradient."""
    spec = replace(SPECS["plain"], grid=(3,))
    model, (states, _, _) = _made(spec, hidden=hidden), _given(spec)
    valid = torch.rand(3, STEPS, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    noise = torch.where(valid[..., None], states.tokens, torch.nan).requires_grad_()
    masked = model(replace(states, tokens=noise, valid=valid))
    assert torch.equal(masked, model(replace(states, valid=valid)))
    masked.sum().backward()
    assert noise.grad is not None and not noise.grad[~valid].any()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_stays_finite(dtype: torch.dtype, name: str, norm: bool) -> None:
    """P14, and every weight learns."""
    spec = SPECS[name]
    model, given_ = _made(spec, hidden=5, norm=norm), _given(spec, batch=1)
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        predicted = model(*given_)
    assert predicted.dtype is torch.float32
    (predicted * torch.arange(6)).sum().backward()
    assert predicted.isfinite().all()
    assert all(weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any() for weight in model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    model, (states, condition, z) = _made(SPECS["driven"]), _given(SPECS["driven"])
    with pytest.raises(ValueError, match="gru is made for action of width 2, and is given width 0"):
        model(replace(states, actions=None), condition, z)
    with pytest.raises(ValueError, match="condition of width 3, and is given width 0"):
        model(states, None, z)
    with pytest.raises(ValueError, match="z of width 0, and is given width 4"):
        _made(SPECS["plain"])(_given(SPECS["plain"])[0], None, z)
    with pytest.raises(ValueError, match="use an encoder that gives tokens"):
        GRU(Spec(maps=((3, 8, 8),)))
