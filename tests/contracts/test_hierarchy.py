"""Levels above levels: a frozen one below, macro-actions, crops, and only those frames encoded that somebody reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import contract_lab as lab
import torch
from torch import Tensor

from hjepa import checkpoint
from hjepa.stack import Pass
from hjepa.train import Trainer

Trained = Callable[[str], Path]

DIGITS = "data.world={name: moving_digits, frames: 24, size: 16, digit_size: 8, samples: 12, held_out: 4, batch: 4}"


def model(folder: Path, prefix: str = "model/") -> dict[str, Tensor]:
    tensors = checkpoint.newest(folder / "checkpoints", print).tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def test_a_frozen_level_is_that_of_its_run_and_stays_so(trained: Trained) -> None:
    low, high = (model(trained(name), "model/levels.frame.") for name in ("low", "hwm"))
    assert any("teacher" in name for name in low)
    assert lab.digest(high) == lab.digest(low)


def test_a_frozen_level_is_neither_trained_nor_in_training_mode(trained: Trained) -> None:
    made = lab.restored(trained("hwm"))
    held = {id(parameter) for group in made.optimizer.optimizer.param_groups for parameter in group["params"]}
    assert not made.stack.levels["frame"].training and made.stack.levels["leap"].training
    assert held == {id(parameter) for parameter in made.stack.levels["leap"].parameters()}
    assert (
        not made.stack.levels["leap"].preventions.targets(lab.here(made.stack, "leap", lab.batches(made))).tokens.requires_grad
    )


def test_the_upper_level_shares_the_lower_ones_latent_space(trained: Trained) -> None:
    made = lab.restored(trained("hwm"))
    batch = lab.batches(made)["world"]
    low, high = (made.stack.states(label, "world", batch) for label in ("frame", "leap"))
    assert torch.equal(high.tokens, low.tokens[:, ::4]) and torch.equal(high.time, low.time[:, ::4])


def test_macro_actions_are_made_of_the_actions_between_two_own_steps(trained: Trained) -> None:
    made = lab.restored(trained("h_jepa"))
    batch, specs = lab.batches(made)["world"], {label: level.spec for label, level in made.stack.levels.items()}
    assert [(spec.actions, spec.clock, spec.steps) for spec in specs.values()] == [(2, 1, 24), (2, 2, 12), (2, 6, 4)]
    gains = [made.stack.levels[label].macro_action.gain for label in ("moment", "scene")]
    moment, scene = (made.stack.states(label, "world", batch).actions for label in ("moment", "scene"))
    # window i of `moment` ends at frame 2i + 1, window j of `scene` at moment 3j + 2
    torch.testing.assert_close(
        moment, gains[0] * torch.stack([batch["actions"][:, i : i + 2].sum(1) for i in range(1, 22, 2)], 1)
    )
    torch.testing.assert_close(scene, gains[1] * torch.stack([moment[:, i : i + 3].sum(1) for i in range(2, 11, 3)], 1))


def encoded(of: Trainer, step: int) -> tuple[Pass, int]:
    """A step of training on its way, and how many frames a sample it encodes."""
    frames: list[int] = []
    encoder = of.stack.levels["frame"].encoder
    hook = encoder.register_forward_pre_hook(lambda module, given: frames.append(given[0].time.shape[1]))
    one = Pass(of.stack, lab.batches(of, step), step)
    one.outcomes()
    hook.remove()
    assert len(frames) == 1
    return one, frames[0]


def read(one: Pass) -> set[int]:
    """The frames under the crops of all levels."""
    frames, moments, scenes = (set(one._own(label)) for label in ("frame", "moment", "scene"))
    moments = moments | {3 * scene + offset for scene in scenes for offset in range(3)}
    return frames | {2 * moment + offset for moment in moments for offset in range(2)}


def test_only_what_some_level_reads_is_encoded(tmp_path: Path) -> None:
    nothing = [f"levels.{label}.macro_action=null" for label in ("moment", "scene")]
    made = lab.trainer("h_jepa", tmp_path / "run", DIGITS, *nothing)
    passes = [encoded(made, step) for step in range(6)]
    assert [count for _, count in passes] == [len(read(one)) for one, _ in passes]
    assert len({tuple(sorted(read(one))) for one, _ in passes}) > 1 and any(count < 20 for _, count in passes)


def test_actions_leave_no_gap_between_the_frames(tmp_path: Path) -> None:
    made = lab.trainer("h_jepa", tmp_path / "run")
    for one, count in (encoded(made, step) for step in range(6)):
        assert count == max(read(one)) - min(read(one)) + 1


def test_sparse_is_dense_bit_for_bit(trained: Trained) -> None:
    made = lab.restored(trained("h_jepa"))
    for step in range(4):
        sparse, batch = Pass(made.stack, lab.batches(made, step), step), lab.batches(made, step)["world"]
        sparse.outcomes()
        for (label, source), states in sparse.made.items():
            whole = made.stack.states(label, source, batch)
            at = sparse.wanted[label, source]
            assert states.steps == len(at) < whole.steps
            assert torch.equal(states.tokens, whole.tokens[:, at]) and torch.equal(states.time, whole.time[:, at])
            assert torch.equal(states.actions, whole.actions[:, at[0] : at[-1]])


def test_a_level_sees_its_own_crop_alone(trained: Trained) -> None:
    made = lab.restored(trained("h_jepa"))
    outcomes = made.stack(lab.batches(made), 0)
    assert {label: tuple(outcome.energy.shape) for label, outcome in outcomes.items()} == {
        "frame": (4, 3),
        "moment": (4, 2),
        "scene": (4, 1),
    }
