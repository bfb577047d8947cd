"""What training computes in, what is compiled, and what becomes of memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import trainings
from trainings import SMALL, changed

from hjepa import loading, making, runs, train
from hjepa.errors import Mistake
from hjepa.nn.blocks import Block

BF16 = changed(SMALL, ("train.precision", "bfloat16"))


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(making, "_has_bfloat16", lambda on: False)
    with pytest.raises(Mistake, match=r"train\.precision: bfloat16 is emulated on this CPU"):
        trainings.opened(tmp_path / "run", BF16)


def test_what_was_trained_in_bfloat16_is_evaluated_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainings.trained(tmp_path / "run", SMALL)
    monkeypatch.setattr(making, "_has_bfloat16", lambda on: False)
    run = runs.Run(tmp_path / "run")
    found = train.evaluate_run(trainings.parsed(BF16), run, trainings.installed(), None, print, lambda result: None)
    assert found.outcome == "done"


def test_in_bfloat16_weights_gradients_and_energies_stay_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(making, "_has_bfloat16", lambda on: True)
    made, plain = trainings.opened(tmp_path / "half", BF16), trainings.opened(tmp_path / "whole", SMALL)
    seen = []
    made.stack.levels["frame"].encoder.out.register_forward_hook(lambda module, given, got: seen.append(got.dtype))
    _, batches = next(loading.batches(made.sources, range(1), 0, made.device))
    outcomes, exact = made.forward_backward(0, batches), plain.forward_backward(0, batches)
    assert seen == [torch.bfloat16]
    for level, outcome in outcomes.items():
        assert outcome.energy.dtype == torch.float32
        torch.testing.assert_close(outcome.energy, exact[level].energy, rtol=0.05, atol=0.02)
    assert {parameter.grad.dtype for parameter in made.parameters if parameter.grad is not None} == {torch.float32}


def test_a_training_in_bfloat16_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(making, "_has_bfloat16", lambda on: True)
    assert trainings.trained(tmp_path / "run", BF16).outcome == "done"


def test_every_block_is_compiled_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiled = []
    monkeypatch.setattr(Block, "compile", lambda self, **options: compiled.append((self, options)))
    made = trainings.opened(tmp_path / "run", changed(SMALL, ("train.compile", True)))
    assert [block for block, _ in compiled] == [module for module in made.stack.modules() if isinstance(module, Block)]
    assert compiled and all(options == {"dynamic": True} for _, options in compiled)


def test_a_stack_without_blocks_has_nothing_to_compile(tmp_path: Path) -> None:
    bare = changed(SMALL, ("train.compile", True), ("levels.frame.predictor", "mlp"), ("levels.moment.predictor", "mlp"))
    with pytest.raises(Mistake, match=r"train\.compile: no level has transformer blocks"):
        trainings.opened(tmp_path / "run", bare)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back so eagerly, and tells of it")
def test_what_a_step_frees_the_next_one_uses() -> None:
    """Pages are taken from the system once, and not for every tensor anew: of 64 MB there are 16,384."""
    import resource

    making.keep_freed_memory()

    def taken() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(1 << 24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    taken()
    assert taken() < 1000
