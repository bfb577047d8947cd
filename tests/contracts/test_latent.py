"""What a prediction cannot know is one of a few codes: inferred by trying all, sampled for several futures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import contract_lab as lab
import torch

from hjepa.randomness import Key

Trained = Callable[[str], Path]


def test_z_is_the_code_of_least_energy_of_each_step(trained: Trained) -> None:
    made = lab.restored(trained("discrete_latent"))
    level = made.stack.levels["frame"]
    outcome = made.stack(lab.batches(made), 0)["frame"]
    states = made.stack.states("frame", "video", lab.batches(made)["video"])
    tried = []
    for code in level.latent.codes:
        predicted = level.predictor(states, None, code.expand(4, 5, -1))
        tried.append((predicted - states.tokens[:, 1:]).square().mean(dim=(2, 3)))
    torch.testing.assert_close(outcome.energy, torch.stack(tried).amin(dim=0))
    assert len(torch.stack(tried).argmin(dim=0).unique()) > 1


def test_codes_learn_from_the_steps_that_chose_them(trained: Trained) -> None:
    made = lab.restored(trained("discrete_latent"))
    made.optimizer.optimizer.zero_grad()
    made.stack(lab.batches(made), 0)["frame"].terms["prediction"].backward()
    assert made.stack.levels["frame"].latent.codes.grad.abs().sum() > 0


def test_samples_of_z_are_several_futures(trained: Trained) -> None:
    made = lab.restored(trained("discrete_latent"))
    level, batch = made.stack.levels["frame"], lab.batches(made)["video"]
    start = made.stack.states("frame", "video", batch).slice(0, 3)
    futures, ahead = 6, 2
    key = Key.of(0, "futures").fold(batch["ids"])
    z = level.latent.sample(futures * ahead, key).view(4 * futures, ahead, -1)
    rolled = level.rollout(start.rows(torch.arange(4).repeat_interleave(futures)), None, ahead, z=z)
    ends = rolled.tokens[:, -1].reshape(4, futures, -1)
    assert all(1 < len(sample.unique(dim=0)) <= futures for sample in ends.detach())
    assert rolled.time[0].tolist() == [3, 4]


def test_a_samples_futures_are_its_own() -> None:
    latent = lab.installed().find("latent", "codes").load()(None, count=5)
    keys = Key.of(0).fold(torch.arange(4))
    assert torch.equal(latent.sample(7, keys)[2:3], latent.sample(7, Key(keys.word[2:3])))
    assert latent.sample(7, keys).shape == (4, 7, 3)


def test_levels_above_know_nothing_of_a_latent_below(trained: Trained) -> None:
    made = lab.restored(trained("discrete_latent"))
    assert made.stack.levels["frame"].spec.latent == 3 and made.stack.levels["moment"].spec.latent == 2
    assert made.stack.levels["course"].spec.latent == made.stack.levels["course"].predictor.latent == 0
