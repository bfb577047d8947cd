"""The level `forecast`: what z adds to it, and wrong targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hjepa.contracts import Build, Features, Here, Spec, States
from hjepa.randomness import Key
from hjepa_forecast.causal import Causal
from hjepa_forecast.forecast import Forecast
from hjepa_forecast.mlp import StepMLP

SPEC = Spec(width=3, ticks=tuple(range(5)))


class Ready(Build[Any]):
    """A component that needs no study."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make, self.name, self.path = make, make.__name__.lower(), ""

    def __call__(self, *neighbours: Any) -> Any:
        return self.make(*neighbours)


class Same(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec.giving(spec.width)

    def forward(self, below: States, layers: tuple[str, ...] = ()) -> Features:
        return Features(below.tokens, valid=below.valid)


class Squares(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().mean(dim=-1)


class Pair(nn.Module):
    """Two codes, z = 1 and z = -1, tried one after the other; R is 0.25, training costs 0.5."""

    width = 1

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.asked: list[tuple[Tensor, Tensor]] = []

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        self.asked.append((context, target))
        one = torch.ones(*target.shape[:2], 1)
        better = energy_of_z(one) <= energy_of_z(-one)
        z = torch.where(better[..., None], one, -one)
        return z, torch.full(target.shape[:2], 0.5)

    def sample(self, count: int, key: Key) -> Tensor:
        return torch.ones(*key.word.shape, count, 1)

    def penalty(self, z: Tensor) -> Tensor:
        return torch.full(z.shape[:-1], 0.25)

    def logs(self, z: Tensor) -> dict[str, Tensor]:
        return {"mean": z.mean()}


def level(latent: bool = True, predictor: Callable[..., Any] = StepMLP, **options: Any) -> Forecast:
    torch.manual_seed(0)
    given = Ready(Pair) if latent else None
    made = Forecast(SPEC, encoder=Ready(Same), predictor=Ready(predictor), energy=Ready(Squares), latent=given, **options)
    for weight in made.predictor.parameters():
        weight.data += 0.3 * torch.randn(weight.shape)
    return made


def below(batch: int = 4) -> States:
    tokens = torch.randn(batch, 5, 1, 3, generator=torch.Generator().manual_seed(1))
    return States(tokens, torch.arange(5).expand(batch, -1))


def here(made: Forecast, states: States) -> Here:
    return Here(
        lambda: states,
        lambda: made.encode(states),
        lambda e: states,
        Key.of(0).fold(torch.arange(len(states.time))),
        Key.of(1),
        0,
    )


def fits(made: Forecast, states: States, target: Tensor) -> Tensor:
    """(2, B, T-1): the energy of each z."""
    tried = [made.predictor(states, None, side * torch.ones(len(target), 4, 1)) for side in (1, -1)]
    return torch.stack([(one - target).square().mean(dim=(2, 3)) for one in tried])


@pytest.mark.parametrize("predictor", [StepMLP, Causal])
def test_each_step_has_the_z_of_its_own_least_energy(predictor: Callable[..., Any]) -> None:
    """Exact also with the predictor that attends over steps, because z leads to the next step alone."""
    made, states = level(predictor=predictor), below()
    outcome = made(here(made, states))
    best = fits(made, states, states.tokens[:, 1:]).amin(dim=0)
    torch.testing.assert_close(outcome.energy, best + 0.25)
    torch.testing.assert_close(outcome.terms["prediction"], best.mean())
    assert outcome.terms["latent"] == 0.5 and "latent.mean" in outcome.logs
    context, target = made.latent.asked[0]
    assert torch.equal(context, states.tokens[:, :-1]) and torch.equal(target, states.tokens[:, 1:])


def test_what_is_trivial_knows_nothing_of_z() -> None:
    states = below()
    with_z, without = (level(latent)(here(level(latent), states)) for latent in (True, False))
    assert torch.equal(with_z.trivial, without.trivial)
    assert not without.logs and set(without.terms) == {"prediction"}


def test_wrong_targets_are_those_of_the_sample_before_with_z_inferred_anew() -> None:
    made, states = level().eval(), below()
    outcome = made(here(made, states))
    wrong = fits(made, states, states.tokens[:, 1:].roll(1, 0)).amin(dim=0)
    torch.testing.assert_close(outcome.shuffled, wrong + 0.25)
    assert not outcome.shuffled.requires_grad


def test_wrong_targets_without_a_latent() -> None:
    made, states = level(latent=False).eval(), below()
    outcome = made(here(made, states))
    wrong = (made.predictor(states) - states.tokens[:, 1:].roll(1, 0)).square().mean(dim=(2, 3))
    torch.testing.assert_close(outcome.shuffled, wrong)


@pytest.mark.parametrize("latent", [True, False])
def test_wrong_targets_cost_nothing_in_training_and_need_two_samples(latent: bool) -> None:
    made = level(latent)
    assert made(here(made, below())).shuffled is None
    assert made.eval()(here(made, below(1))).shuffled is None


def test_the_spec_says_how_wide_z_is() -> None:
    assert level().spec.latent == 1 and level(latent=False).spec.latent == 0


def test_a_rollout_in_training_takes_the_z_that_were_inferred() -> None:
    made, states = level(rollout=2), below()
    asked = here(made, states)
    energy = made(asked).terms["rollout"]
    z, _ = made._inferred(asked, states)
    found = []
    for start in (1, 2, 3):
        rolled = made.rollout(states.slice(0, start), None, 2, None, z[:, start - 1 : start + 1])
        found.append((rolled.tokens - states.tokens[:, start : start + 2]).square().mean())
    assert any(torch.isclose(energy, one) for one in found)
    assert not any(
        torch.isclose(energy, (made.rollout(states.slice(0, s), None, 2).tokens - states.tokens[:, s : s + 2]).square().mean())
        for s in (1, 2, 3)
    )


def test_z_leads_a_rollout_and_none_is_zeros() -> None:
    made, states = level(), below()
    one = made.rollout(states, None, 2, z=torch.ones(4, 2, 1)).tokens
    none, zeros = made.rollout(states, None, 2).tokens, made.rollout(states, None, 2, z=torch.zeros(4, 2, 1)).tokens
    assert torch.equal(none, zeros) and not torch.allclose(one, none)


@pytest.mark.parametrize("latent", [True, False])
def test_tokens_that_are_not_valid_have_no_influence(latent: bool) -> None:
    """P14."""
    made, states = level(latent).eval(), below()
    valid = torch.ones(4, 5, 1, dtype=torch.bool)
    valid[1, 2:] = False
    outcomes = [
        made(here(made, replace(states, tokens=states.tokens.masked_fill(~valid[..., None], fill), valid=valid)))
        for fill in (0.0, 9.0)
    ]
    assert torch.equal(outcomes[0].energy, outcomes[1].energy)
    assert torch.equal(outcomes[0].shuffled, outcomes[1].shuffled)


def test_a_rollout_does_not_learn_from_tokens_that_are_not_valid() -> None:
    """P14."""
    made, states = level(False, rollout=4), below()
    valid = torch.ones(4, 5, 1, dtype=torch.bool)
    valid[:, 3:] = False
    rolled = [
        made(here(made, replace(states, tokens=states.tokens.masked_fill(~valid[..., None], fill), valid=valid))).terms[
            "rollout"
        ]
        for fill in (0.0, 9.0)
    ]
    assert torch.equal(rolled[0], rolled[1])


class Twice(Pair):
    """Asks twice of the same z."""

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        one = torch.ones(*target.shape[:2], 1)
        assert torch.equal(energy_of_z(one), energy_of_z(one))
        return super().infer(energy_of_z, context, target, key)


def test_what_a_search_compares_is_the_same_function_each_time_though_dropout_is_on_in_training() -> None:
    torch.manual_seed(0)
    made = Forecast(
        SPEC,
        encoder=Ready(Same),
        predictor=Ready(lambda spec: Causal(spec, dropout=0.5)),
        energy=Ready(Squares),
        latent=Ready(Twice),
    )
    outcome = made(here(made, below()))
    assert made.predictor.training and outcome.energy.isfinite().all()
