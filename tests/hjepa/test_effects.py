"""What a term is said to do to a level is what a small step on that term alone does to it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import trainings
from trainings import SMALL, changed, digests

from hjepa import effects, train
from hjepa.monitor import at_rest

PROTECTED = changed(
    SMALL,
    ("levels.frame.prevention", [{"name": "vicreg", "std": 3.0, "cov": 2.0}]),
    ("levels.moment.prevention", [{"name": "sigreg", "weight": 0.1}]),
)


def opened(tmp_path: Path, *changes: tuple[str, object]) -> train.Trainer:
    made = trainings.opened(tmp_path / "run", changed(PROTECTED, *changes))
    made._look()
    return made


def quantities(trainer: train.Trainer, level: str) -> tuple[float, float]:
    """Log spread and log participation ratio, by the eigenvalues of the covariance."""
    with at_rest(trainer.stack):
        tokens = trainer.stack.states(level, "video", trainer.monitor.batches["video"]).tokens
    rows = tokens.flatten(0, -2).double()
    values = torch.linalg.eigvalsh((rows - rows.mean(0)).T @ (rows - rows.mean(0)))
    return float(values.sum().log() / 2), float(2 * values.sum().log() - values.square().sum().log())


def gradients(trainer: train.Trainer, term: str) -> list[torch.Tensor | None]:
    trainer.stack.eval()
    one = effects.Pass(trainer.stack, trainer.monitor.batches, 0, whole=True)
    return list(torch.autograd.grad(effects._weighted(one, 0)[term], trainer.parameters, allow_unused=True))


@pytest.mark.parametrize("level", ["frame", "moment"])
@pytest.mark.parametrize("term", ["frame/prediction", "frame/vicreg.std", "frame/vicreg.cov", "moment/sigreg.normal"])
def test_an_effect_is_what_a_small_step_on_the_term_does(tmp_path: Path, level: str, term: str) -> None:
    trainer = opened(tmp_path, ("levels.moment.gradient", "flow"))
    said = effects.measured(trainer.stack, trainer.monitor.batches, 0, [level])[level][term]
    own = {id(parameter) for parameter in trainer.stack.levels[level].parameters()}
    pairs = zip(trainer.parameters, gradients(trainer, term))
    along = [(weight, gradient) for weight, gradient in pairs if gradient is not None and id(weight) in own]
    size = 1e-4 / max([float(gradient.abs().max()) for _, gradient in along], default=1.0)
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            for weight, gradient in along:
                weight.sub_(sign * size * gradient)
            found.append(quantities(trainer, level))
            for weight, gradient in along:
                weight.add_(sign * size * gradient)
    spread, directions = ((up - down) / (2 * size) for up, down in zip(*found))
    assert said.spread == pytest.approx(spread, rel=0.05, abs=1e-3 * abs(said.directions) + 1e-6)
    assert said.directions == pytest.approx(directions, rel=0.05, abs=1e-3 * abs(said.spread) + 1e-6)


def test_prediction_pulls_together_and_spread_is_what_variance_asks_for(tmp_path: Path) -> None:
    trainer = opened(tmp_path, ("levels.frame.prevention.0.gamma", 5.0))
    frame = effects.measured(trainer.stack, trainer.monitor.batches, 0, ["frame"])["frame"]
    assert frame["frame/prediction"].spread < 0 < frame["frame/vicreg.std"].spread
    assert frame["frame/vicreg.cov"].spread < 0 < frame["frame/vicreg.cov"].directions


def test_a_level_above_acts_on_the_one_below_while_its_gradient_flows(tmp_path: Path) -> None:
    for gradient, acts in (("flow", True), ("stop", False)):
        trainer = opened(tmp_path / gradient, ("levels.moment.gradient", gradient))
        found = effects.measured(trainer.stack, trainer.monitor.batches, 0, ["frame", "moment"])
        assert (found["frame"]["moment/sigreg.normal"].spread != 0) is acts
        assert found["moment"]["moment/sigreg.normal"].spread != 0


def test_a_levels_weight_counts(tmp_path: Path) -> None:
    heavy, light = (
        effects.measured(made.stack, made.monitor.batches, 0, ["frame"])["frame"]["frame/prediction"].spread
        for made in (opened(tmp_path / str(weight), ("levels.frame.weight", weight)) for weight in (2.0, 1.0))
    )
    assert heavy == pytest.approx(2 * light)


def test_measuring_leaves_the_stack_as_it_is(tmp_path: Path) -> None:
    trainer = opened(tmp_path)
    before = copy.deepcopy(digests(trainer.state()[0]))
    effects.measured(trainer.stack, trainer.monitor.batches, 0, ["frame", "moment"])
    assert digests(trainer.state()[0]) == before
    assert trainer.stack.training
    assert all(parameter.grad is None for parameter in trainer.parameters)


def test_where_everything_is_the_same_effects_are_finite(tmp_path: Path) -> None:
    trainer = opened(tmp_path)
    with torch.no_grad():
        for parameter in trainer.stack.levels["frame"].encoder.parameters():
            parameter.zero_()
    found = effects.measured(trainer.stack, trainer.monitor.batches, 0, ["frame", "moment"])
    numbers = [value for level in found.values() for one in level.values() for value in (one.spread, one.directions)]
    assert torch.tensor(numbers).isfinite().all()


def test_what_comes_up_to_a_tenth_of_the_pull_holds() -> None:
    def of(*spreads: float) -> dict[str, effects.Effect]:
        return {str(number): effects.Effect(spread, 0.0) for number, spread in enumerate(spreads)}

    assert effects.held(of(0.11, -1.0)) and effects.held(of(0.5, -2.0, -3.0)) and effects.held(of())
    assert not effects.held(of(0.09, -1.0)) and not effects.held(of(-1.0, 0.0))
