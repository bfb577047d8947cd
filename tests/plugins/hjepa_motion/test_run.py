"""A level of motion, its data and its probe, in one run: trained for two steps, scored, drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from hjepa import registry, report, runs, stack, study, train

STUDY = {
    "data": {"video": {"name": "photos_in_motion", "size": 32, "held_out": 6, "batch": 2}},
    "levels": {
        "motion": {
            "name": "motion",
            "encoder": {"name": "pyramid", "widths": [4, 4], "depths": [0, 0]},
            "prevention": ["vicreg"],
            "weight_of_l1": 1,
            "hidden": [4, 4],
        }
    },
    "train": {"steps": 2, "diagnose_every": 1, "device": "cpu", "track": False},
    "evaluate": {"samples": 6, "batch": 4},
    "probes": {"flow": {"name": "flow", "level": "motion", "against": ["motion"], "classical": ["farneback"]}},
}


def test_a_run_scores_and_draws_its_flow(tmp_path: Path) -> None:
    plugins = registry.load()
    plan = study.parse(STUDY, plugins)
    stack.check(plan)
    run = runs.create(plan, tmp_path / "run", plugins)
    result = train.train(plan, run, plugins, False, print, lambda trainer, values: None, lambda result: None)
    found = {
        name.removeprefix("probe/flow/"): value for name, value in result.metrics.items() if name.startswith("probe/flow/")
    }
    assert found["epe"] == found["motion_epe"] and found["ratio"] == pytest.approx(found["epe"] / found["zero_epe"])
    # Nothing is learned in two steps, and an estimator begins near zero flow.
    assert found["untrained_epe"] == pytest.approx(found["zero_epe"], rel=0.05) and found["farneback_epe"] > 0
    assert {"scale_0_epe", "scale_1_epe"} <= found.keys() and "scale_2_epe" not in found
    picture = imread(report.write(result))
    # Below what every run shows: 8 lines of panels with colours in them.
    lower = picture[len(picture) // 2 :, :, :3]
    assert (lower.max(axis=2) - lower.min(axis=2) > 0.3).mean() > 0.02
