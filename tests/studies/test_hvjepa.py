"""A hierarchy over masked clips: no level sees what comes after the last frame that its states are stamped with."""

from __future__ import annotations

from pathlib import Path

import torch

from hjepa import registry, runs, train
from hjepa.stack import Pass
from hjepa.study import read

STUDY = Path(__file__).parents[2] / "studies" / "hvjepa.yaml"
SMALL = ("train.track=false", "data.video.batch=2", "data.video.held_out=4")


def test_the_last_frame_changes_the_last_state_of_each_level_and_no_other(tmp_path: Path) -> None:
    plugins = registry.load()
    study = read(str(STUDY), SMALL, plugins)
    study.complain()
    made = train.Trainer(study, runs.create(study, tmp_path / "run", plugins), plugins, print)
    made.stack.eval()
    batch = made.sources["video"].look("valid", 0, 2, made.device)
    other = batch | {"frames": torch.cat((batch["frames"][:, :-1], 1 - batch["frames"][:, -1:]), dim=1)}
    with torch.no_grad():
        one, two = (Pass(made.stack, {"video": given}, 0, whole=True) for given in (batch, other))
        for label, steps in (("clip", 16), ("moment", 16), ("scene", 4)):
            before, after = (each.states(label, "video").tokens for each in (one, two))
            assert before.shape[1] == steps
            assert torch.equal(before[:, :-1], after[:, :-1])
            assert not torch.equal(before[:, -1], after[:, -1])


def test_the_clocks_are_4_and_16_frames(tmp_path: Path) -> None:
    plugins = registry.load()
    study = read(str(STUDY), SMALL, plugins)
    study.complain()
    made = train.Trainer(study, runs.create(study, tmp_path / "run", plugins), plugins, print)
    assert made.clocks == {"clip": 4, "moment": 4, "scene": 16}
