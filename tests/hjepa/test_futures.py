"""The bench draws futures: keyed by sample, side by side, with z of the level's own latent. And tells energies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trainings
from trainings import SMALL, changed

from hjepa import train
from hjepa.errors import Mistake
from hjepa.evaluate import Bench, Samples

LATENT = changed(SMALL, ("levels.frame.latent", {"name": "gaussian", "width": 2}), ("levels.frame.predictor", {"name": "mlp"}))


def bench(trainer: train.Trainer) -> Bench:
    return Bench(trainer.stack, Samples(trainer.sources, trainer.study, trainer.device))


@pytest.fixture
def found(tmp_path: Path) -> Bench:
    return bench(trainings.opened(tmp_path / "run", LATENT))


def test_futures_of_a_sample_lie_next_to_one_another(found: Bench) -> None:
    count = len(found.observe("frame", "test").batch["ids"])
    rolled = found.predict("frame", "test", 1, 2, futures=3)
    assert rolled.tokens.shape[:2] == (3 * count, 2)
    level, states = found.stack.levels["frame"], found.observe("frame", "test").states
    z = found._drawn("frame", found.observe("frame", "test").batch["ids"], 2, 3)
    with torch.no_grad():
        second = level.rollout(states.slice(0, 2), None, 2, None, z.view(count, 3, 2, -1)[:, 1])
    torch.testing.assert_close(rolled.tokens.view(count, 3, *rolled.tokens.shape[1:])[:, 1], second.tokens)
    assert torch.equal(rolled.time.view(count, 3, 2)[:, 0], states.time[:, 2:4])


def test_futures_are_the_samples_own(found: Bench, tmp_path: Path) -> None:
    """Whatever is drawn beside them and before."""
    whole = found.predict("frame", "test", 1, 2, futures=3).tokens
    parts = bench(trainings.opened(tmp_path / "again", LATENT))
    parts.batch = 5
    torch.testing.assert_close(parts.predict("frame", "test", 1, 2, futures=3).tokens, whole)
    assert not torch.allclose(whole[0::3], whole[1::3])


def test_without_futures_z_is_zero(found: Bench) -> None:
    level, states = found.stack.levels["frame"].eval(), found.observe("frame", "test").states
    with torch.no_grad():
        expected = level.rollout(states.slice(0, 2), None, 2, None, torch.zeros(len(states.time), 2, 2))
    torch.testing.assert_close(found.predict("frame", "test", 1, 2).tokens, expected.tokens)


def test_a_level_without_a_latent_has_no_futures(found: Bench) -> None:
    with pytest.raises(Mistake, match="level 'moment' knows one future"):
        found.predict("moment", "test", 0, 1, futures=2)


def test_energies_are_those_of_the_levels_outcome(found: Bench) -> None:
    told = found.energies("frame", "test")
    assert set(told) == {"energy", "trivial", "shuffled"}
    states = found.observe("frame", "test").states
    assert all(values.shape == (len(states.time), states.steps - 1) for values in told.values())
    torch.testing.assert_close(told["trivial"], states.tokens.diff(dim=1).square().mean(dim=(2, 3)))
    assert not any(values.requires_grad for values in told.values())
