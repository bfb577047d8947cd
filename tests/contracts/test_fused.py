"""Several streams as one state, and what conditions its course."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import contract_lab as lab
import torch

Trained = Callable[[str], Path]


def test_every_stream_has_its_own_encoder_and_counts(trained: Trained) -> None:
    made = lab.restored(trained("fused"))
    batch = lab.batches(made)["world"]
    below = lab.here(made.stack, "body", {"world": batch}).below
    assert [part.maps != () for part in below.parts] == [True, False] and below.tokens.numel() == 0
    states = made.stack.states("body", "world", batch).tokens
    for stream in ("frames", "proprio"):
        other = made.stack.states("body", "world", {**batch, stream: batch[stream] + 0.5}).tokens
        assert not torch.allclose(states, other)


def test_a_condition_leads_predictions_and_leaves_states_alone(trained: Trained) -> None:
    made = lab.restored(trained("fused"))
    batch = lab.batches(made)["world"]
    other = {**batch, "goal": batch["goal"] + 1}
    assert torch.equal(*(made.stack.states("body", "world", given).tokens for given in (batch, other)))
    assert not torch.allclose(*(made.stack({"world": given}, 0)["body"].energy for given in (batch, other)))


def test_windows_of_several_streams_keep_them_apart(tmp_path: Path) -> None:
    made = lab.trainer("fused", tmp_path / "run", "levels.body.stride=2")
    below = lab.here(made.stack, "body", lab.batches(made)).below
    assert below.parts[0].maps[0].shape == (4, 4, 2, 8, 8) and below.parts[1].tokens.shape == (4, 4, 2, 2)
    assert below.actions.shape == (4, 3, 4)
    assert lab.steps(made, 1)[0]["body"].energy.isfinite().all()


SLOW = "levels.slow={name: forecast, reads: proprio, stride: 3, encoder: latent_mlp, predictor: markov, energy: l2}"
FAST = "levels.fast={name: forecast, reads: frames, condition: slow, encoder: conv, predictor: markov, energy: l2}"


def test_a_level_is_conditioned_by_what_is_known_at_its_time(tmp_path: Path) -> None:
    made = lab.trainer("fused", tmp_path / "run", SLOW, FAST)
    batch = lab.batches(made)["world"]
    slow = made.stack.states("slow", "world", batch).tokens.mean(dim=2)
    condition = lab.here(made.stack, "fast", {"world": batch}).condition
    nothing = torch.zeros_like(slow[:, 0])
    known = [nothing, nothing, slow[:, 0], slow[:, 0], slow[:, 0], slow[:, 1], slow[:, 1], slow[:, 1]]
    assert torch.equal(condition, torch.stack(known, dim=1))
