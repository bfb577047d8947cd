"""Systems to come as studies on small components: each is composed, trained and resumed without an edit in hjepa."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import contract_lab as lab
import pytest
import torch

from hjepa import checkpoint, stack, study
from hjepa.contracts import Batch, Spec
from hjepa.errors import StudyMistake
from hjepa.runs import Run

NAMES = sorted(path.stem for path in lab.STUDIES.glob("*.yaml") if path.stem != "base")

Trained = Callable[[str], Path]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_composed_without_a_number(name: str) -> None:
    composed = stack.check(lab.study(name))
    assert all(tensor.is_meta for tensor in composed.state_dict().values())
    assert [row["level"] for row in stack.described(composed)] == list(composed.levels)


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_are_two_and_one_more(name: str, trained: Trained, tmp_path: Path) -> None:
    """Weights, buffers and the optimizer's moments, bit for bit, and all that is written beside them."""
    whole = checkpoint.load(trained(name) / "checkpoints" / "step-00000003")
    shutil.copytree(trained(name), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000003")
    lab.train(study.parse(Run(trained(name)).resolved(), lab.installed()), tmp_path / "run", resume=True)
    resumed = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000003")
    earlier = checkpoint.load(tmp_path / "run" / "checkpoints" / "step-00000002")
    assert lab.digest(resumed.tensors) == lab.digest(whole.tensors) != lab.digest(earlier.tensors)
    assert resumed.facts == whole.facts


@pytest.mark.parametrize("name", NAMES)
def test_no_state_has_seen_its_future(name: str, trained: Trained) -> None:
    """P28: another last frame, and every state before it is the same, bit for bit."""
    made = lab.restored(trained(name))
    made.stack.eval()
    for source, batch in lab.batches(made).items():
        streams = made.stack.composer.streams[source]
        last = max(spec.ticks[-1] for spec in streams.values())
        for label in [label for label, node in made.stack.nodes.items() if node.source == source and last]:
            before, after = (made.stack.states(label, source, given) for given in (batch, other_end(batch, streams)))
            for one, other in zip((before.tokens, *before.maps), (after.tokens, *after.maps), strict=True):
                same = (one == other).flatten(2).all(dim=2)
                assert torch.equal(same, before.time < last)


def other_end(batch: Batch, streams: Mapping[str, Spec]) -> Batch:
    """The batch with another last step of every stream."""
    moving = {name: batch[name] for name, spec in streams.items() if spec.steps > 1}
    return {**batch, **{name: torch.cat((x[:, :-1], 1.5 - x[:, -1:]), dim=1) for name, x in moving.items()}}


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        (
            "masked_under_forecast",
            ["levels.clip={name: unfolded, stride: 2, encoder: {name: patches}}"],
            ["levels.clip: gives states at the ticks [1, 1, 3, 3, 5, 5, 7, 7] from windows that end at [1, 3, 5, 7]", "leak"],
        ),
        (
            "low",
            ["data.world.still=true"],
            [
                "levels.frame: a forecast reads steps each of which has seen later input",
                "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]",
            ],
        ),
        (
            "v_jepa",
            ["levels.part.masking.count=9"],
            ["levels.part.masking: short: 9 boxes of 2 x 1 x 2 = 36 tokens could leave no context of the grid [2, 4, 4]"],
        ),
        (
            "i_jepa",
            ["levels.part.encoder=conv"],
            ["levels.part.encoder.name: MaskableEncoder is needed here, and encoder 'conv' is none: it has no `encode_kept`"],
        ),
        (
            "i_jepa",
            ["levels.part.predictor=causal"],
            ["levels.part.predictor.name: SetPredictor is needed here, and predictor 'causal' is none"],
        ),
        (
            "low",
            ["levels.frame.predictor=fill"],
            ["levels.frame.predictor.name: StepPredictor is needed here, and predictor 'fill' is none"],
        ),
        (
            "discrete_latent",
            ["levels.frame.prevention=[inverse]"],
            ["levels.frame.prevention.0: inverse reads actions from states"],
        ),
        ("fused", ["levels.body.reads=frames"], ["levels.body.encoder: there are 2 encoders for 0 streams"]),
        ("text", ["levels.phrase.reads=topic"], ["levels.phrase.encoder: words reads numbers of words"]),
    ],
)
def test_what_cannot_work_is_refused_before_training(name: str, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(StudyMistake) as caught:
        stack.check(lab.study(name, *overrides))
    for word in words:
        assert word in str(caught.value)
