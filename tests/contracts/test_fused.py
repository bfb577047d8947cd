"""Several streams as one state, and what conditions its course."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import contract_lab as lab
import pytest
import torch

from hjepa import stack

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


FAST = "levels.fast={name: forecast, reads: frames, condition: slow, encoder: conv, predictor: markov, energy: l2}"


@pytest.mark.parametrize(
    "slow",
    [
        "{name: forecast, reads: proprio, stride: 3, encoder: latent_mlp, predictor: markov, energy: l2}",
        "{name: agree, reads: frames, stride: 8, encoder: halves, energy: l2}",
    ],
)
def test_a_level_is_conditioned_by_what_is_known_at_its_time(slow: str, tmp_path: Path) -> None:
    made = lab.trainer("fused", tmp_path / "run", f"levels.slow={slow}", FAST)
    batch = lab.batches(made)["world"]
    states = made.stack.states("slow", "world", batch)
    ticks = states.time[0].tolist()
    condition = lab.here(made.stack, "fast", {"world": batch}).condition
    for step in range(8):
        seen = [place for place, tick in enumerate(ticks) if tick <= step]
        expected = states.tokens[:, seen[-1]].mean(dim=1) if seen else torch.zeros_like(condition[:, step])
        assert torch.equal(condition[:, step], expected)


@pytest.mark.parametrize(
    "encoder",
    [
        "{name: conv, width: 8, base: 4, stages: 2}",
        "{name: impala, width: 8, channels: [4, 4], norm: true}",
        "{name: impala, width: 8, channels: [4], patch: 2, spatial: true}",
    ],
)
@pytest.mark.parametrize("predictor", ["causal", "{name: gru, hidden: 8}"])
def test_what_is_felt_can_lie_beside_what_is_seen(encoder: str, predictor: str, tmp_path: Path) -> None:
    changes = [f"levels.body.encoder={encoder}", f"levels.body.predictor={predictor}"]
    stack.check(lab.study("fused", *changes))
    made = lab.trainer("fused", tmp_path / "run", *changes)
    batch = lab.batches(made)["world"]
    before = made.stack.states("body", "world", batch).tokens
    assert len(lab.steps(made, 2)) == 2
    after = made.stack.states("body", "world", batch).tokens
    assert not torch.equal(before, after)
    for stream in ("frames", "proprio"):
        other = made.stack.states("body", "world", {**batch, stream: batch[stream] + 0.5}).tokens
        assert not torch.isclose(after, other).all(-1).any()
