"""A batch in parts gives what the whole gives, wherever nothing looks over the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trainings
from trainings import SMALL, changed

from hjepa import accumulate, loading, train
from hjepa.errors import Mistake

PLAIN = changed(SMALL, ("levels.frame.prevention", ["stop_gradient"]), ("levels.moment.prevention", []))


def gradients(folder: Path, count: int, *changes: tuple[str, object]) -> tuple[train.Trainer, dict[str, torch.Tensor]]:
    made = trainings.opened(folder, changed(PLAIN, ("train.accumulate", count), *changes))
    _, batches = next(loading.batches(made.sources, range(1), 0, made.device))
    made.outcomes = made.forward_backward(0, batches)
    return made, {name: p.grad for name, p in made.stack.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [2, 4])
def test_the_gradient_and_the_terms_are_those_of_the_whole_batch(tmp_path: Path, count: int) -> None:
    whole, wanted = gradients(tmp_path / "whole", 1)
    parted, found = gradients(tmp_path / "parted", count)
    assert wanted.keys() == found.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-7)
    for level in ("frame", "moment"):
        one, other = parted.outcomes[level], whole.outcomes[level]
        torch.testing.assert_close(one.energy, other.energy.detach())
        torch.testing.assert_close(one.terms["prediction"], other.terms["prediction"].detach())


def test_statistics_over_the_batch_are_those_of_each_part(tmp_path: Path) -> None:
    prevention = ("levels.frame.prevention", [{"name": "vicreg", "over": "batch"}])
    whole, parted = (gradients(tmp_path / str(count), count, prevention)[0] for count in (1, 2))
    term = "vicreg.std"
    assert not torch.equal(parted.outcomes["frame"].terms[term], whole.outcomes["frame"].terms[term])


def test_parts_are_equal_and_in_order() -> None:
    batches = {"video": {"ids": torch.arange(6), "frames": torch.rand(6, 2)}}
    parts = accumulate.parts(batches, 3)
    assert [part["video"]["ids"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(torch.cat([part["video"]["frames"] for part in parts]), batches["video"]["frames"])
    with pytest.raises(Mistake, match=r"data\.video\.batch: 6 samples cannot be shared out to train\.accumulate = 4"):
        accumulate.parts(batches, 4)


def test_a_whole_training_in_parts(tmp_path: Path) -> None:
    result = trainings.trained(tmp_path / "run", changed(SMALL, ("train.accumulate", 2)))
    assert result.outcome == "done" and result.step == 4
