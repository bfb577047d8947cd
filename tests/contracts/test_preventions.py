"""Preventions that remember, that draw at each step, that read actions; all in one list."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import contract_lab as lab
import torch

from hjepa import checkpoint

Trained = Callable[[str], Path]
NAME = "model/levels.frame.preventions.parts.queue.rows"


def test_their_terms_add_up_under_their_names(tmp_path: Path) -> None:
    made = lab.trainer("preventions", tmp_path / "run")
    terms = lab.steps(made, 1)[0]["frame"].terms
    assert list(terms) == ["prediction", "queue.contrast", "pairs.covariance", "inverse.action"]


def test_the_queue_holds_the_targets_of_the_last_steps(tmp_path: Path) -> None:
    made = lab.trainer("preventions", tmp_path / "run")
    queue = made.stack.levels["frame"].preventions.parts["queue"]
    before = queue.rows.clone()
    pushed = []
    for step in range(2):
        made.step(step, lab.batches(made, step))
        pushed.append(queue.newest.clone())
    assert [len(rows) for rows in pushed] == [28, 28]
    assert torch.equal(queue.rows, pushed[1][:16]) and not torch.equal(queue.rows, before)


def test_looking_leaves_the_queue_alone(trained: Trained) -> None:
    made = lab.restored(trained("preventions"))
    queue = made.stack.levels["frame"].preventions.parts["queue"]
    before = queue.rows.clone()
    made.monitor.look(3, settled=True)
    assert torch.equal(queue.rows, before)
    assert torch.equal(checkpoint.newest(trained("preventions") / "checkpoints", print).tensors[NAME], before)


def test_a_draw_is_the_steps_own(trained: Trained) -> None:
    made = lab.restored(trained("preventions"))
    batch = lab.batches(made)

    def covariance(step: int) -> float:
        return made.stack(batch, step)["frame"].terms["pairs.covariance"].item()

    assert covariance(5) == covariance(5) != covariance(6)


def test_what_was_done_is_read_from_states(trained: Trained) -> None:
    made = lab.restored(trained("preventions"))
    batch = lab.batches(made)["world"]
    other = {**batch, "actions": -batch["actions"]}
    terms = [made.stack({"world": given}, 0)["frame"].terms for given in (batch, other)]
    assert terms[0]["inverse.action"] != terms[1]["inverse.action"]
    terms[0]["inverse.action"].backward()
    assert made.stack.levels["frame"].encoder.out.weight.grad.abs().sum() > 0


def test_one_that_is_no_module_is_called_as_often_as_others(tmp_path: Path) -> None:
    made = lab.trainer("preventions", tmp_path / "run")
    lab.steps(made)
    assert made.stack.levels["frame"].preventions._members["tally"].calls == {"bind": 1, "terms": 3, "after_step": 3}
