"""Two sources, one encoder: shared as one instance, trained by both, resting with its source (MC-JEPA)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import contract_lab as lab
import pytest
import torch

from hjepa import checkpoint
from hjepa.contracts import Spec
from hjepa.errors import Mistake
from hjepa.train import load_weights

Trained = Callable[[str], Path]


def test_what_is_shared_is_one_instance_one_group_and_one_entry(trained: Trained) -> None:
    made = lab.restored(trained("mc_jepa"))
    content, motion = made.stack.levels["content"], made.stack.levels["motion"]
    assert content.encoder is motion.encoder
    held = [id(parameter) for group in made.optimizer.optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(held)) and all(held.count(id(weight)) == 1 for weight in motion.encoder.parameters())
    names = checkpoint.newest(trained("mc_jepa") / "checkpoints", print).tensors
    assert sum("levels.content.encoder.stages.0.weight" in name for name in names) == 1
    assert not any("levels.motion.encoder" in name for name in names)


def test_levels_that_share_keep_their_own_clocks(trained: Trained) -> None:
    specs = {label: level.spec for label, level in lab.restored(trained("mc_jepa")).stack.levels.items()}
    assert {label: spec.ticks for label, spec in specs.items()} == {
        "content": (0,),
        "motion": (0, 1, 2, 3, 4),
        "course": (0, 1, 2, 3, 4),
        "story": (0, 1, 2, 3, 4),
    }
    assert specs["motion"].maps == ((8, 8, 8), (8, 4, 4)) and isinstance(specs["course"], Spec)


def test_a_source_rests_and_all_that_follows_it(tmp_path: Path) -> None:
    made = lab.trainer("mc_jepa", tmp_path / "run")
    outcomes = lab.steps(made)
    of_video = ["motion", "course", "story"]
    assert [list(step) for step in outcomes] == [["content", *of_video], of_video, ["content", *of_video]]
    tallies = {label: made.stack.levels[label].preventions._members["tally"].calls for label in ("content", "motion")}
    assert tallies == {
        "content": {"bind": 1, "terms": 2, "after_step": 2},
        "motion": {"bind": 1, "terms": 3, "after_step": 3},
    }


def test_the_encoder_learns_from_whoever_took_part(tmp_path: Path) -> None:
    made = lab.trainer("mc_jepa", tmp_path / "run")
    for step in (0, 1):
        given = lab.batches(made, step)
        made.optimizer.optimizer.zero_grad()
        made.stack.loss(made.stack(given, step), step).backward()
        encoder, content = made.stack.levels["content"].encoder, made.stack.levels["content"]
        assert all(weight.grad.abs().sum() > 0 for weight in encoder.parameters())
        assert ("pictures" in given) == (step == 0) and content is not encoder


def test_the_weight_of_a_level_warms_up(tmp_path: Path) -> None:
    made = lab.trainer("mc_jepa", tmp_path / "run")
    for step, share in enumerate((1 / 3, 2 / 3, 1)):
        outcomes = {"motion": made.stack(lab.batches(made), 0)["motion"]}
        whole = torch.stack(list(outcomes["motion"].terms.values())).sum()
        torch.testing.assert_close(made.stack.loss(outcomes, step), 0.1 * share * whole)


def test_a_forecast_reads_the_maps_of_the_motion_level(trained: Trained) -> None:
    made = lab.restored(trained("mc_jepa"))
    below = lab.here(made.stack, "course", lab.batches(made)).below
    assert [tuple(m.shape) for m in below.maps] == [(2, 5, 8, 8, 8), (2, 5, 8, 4, 4)]


def test_a_level_is_read_on_another_source_than_its_own(trained: Trained) -> None:
    made = lab.restored(trained("mc_jepa"))
    batch = lab.batches(made)
    below = lab.here(made.stack, "story", batch).below
    frames = made.stack.states("motion", "video", batch["video"])
    assert below.tokens.shape == (2, 5, 1, 8) and torch.equal(below.tokens, frames.tokens)
    assert not below.tokens.requires_grad


def test_a_level_that_shares_can_be_taken_from_its_run(trained: Trained, tmp_path: Path) -> None:
    run = trained("mc_jepa")
    made = lab.trainer("mc_jepa", tmp_path / "run", f"levels.motion.weights={run}/motion")
    load_weights(made.study, made.stack, print)
    there = lab.restored(run).stack.levels["motion"]
    assert lab.digest(dict(made.stack.levels["motion"].state_dict())) == lab.digest(dict(there.state_dict()))


def test_what_a_run_does_not_have_is_said(trained: Trained, tmp_path: Path) -> None:
    run = trained("mc_jepa")
    alone = ["levels.motion.encoder={name: halves}", f"levels.motion.weights={run}/motion"]
    made = lab.trainer("mc_jepa", tmp_path / "run", *alone)
    with pytest.raises(Mistake, match=r"levels\.motion\.weights: .*missing: encoder\.stages\.0"):
        load_weights(made.study, made.stack, print)
