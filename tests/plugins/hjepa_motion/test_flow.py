"""The probe of flow, on levels whose error is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Batch, Observation, Spec, States
from hjepa.errors import Mistake
from hjepa_data.moving_digits import MovingDigits
from hjepa_data.photos_in_motion import PhotosInMotion
from hjepa_motion.flow import Flow
from hjepa_motion.panels import SHOWN


def digits(samples: int = 8) -> Batch:
    data = MovingDigits(0, size=32, frames=3, slowest=1.0, fastest=5.0, drift=1.5, flow=True)
    return data.split("test").batch(torch.arange(samples), torch.device("cpu"))


@dataclass
class World:
    """`one` is off by (3, 4) everywhere; `other` is right. Coarser scales of `one` are right on maps of a half and a quarter."""

    batch: Batch = field(default_factory=digits)
    missing: str = ""

    def observe(self, level: str, split: str, features: str = "online") -> Observation:
        assert split == "test"
        count, steps = self.batch["frames"].shape[:2]
        return Observation(States(torch.zeros(count, steps, 0, 0), torch.arange(steps).expand(count, -1)), self.batch)

    def predictions(self, level: str, split: str) -> dict[str, Tensor]:
        flow = self.batch["flow"]
        if level == "other":
            return {"flow": flow}
        said = {"flow": flow + torch.tensor([3.0, 4.0]).view(2, 1, 1), "occluded": self.batch["occluded"]}
        for scale, factor in enumerate((4, 2)):
            small = torch.nn.functional.avg_pool2d(flow.flatten(0, 1), factor) / factor
            said[f"flow_{scale}"] = small.unflatten(0, flow.shape[:2])
        return {name: values for name, values in said.items() if name != self.missing}

    def spec(self, level: str) -> Spec:
        return Spec()


def test_scores_are_the_error_that_was_put_in() -> None:
    world = World()
    found = Flow(level="one", against=["other"], speeds=[1, 4], distances=[2]).measure(world)
    still = float(world.batch["flow"].norm(dim=2).mean())
    own = {name: value for name, value in found.items() if name.startswith("epe")}
    assert set(own) == {"epe", "epe_visible", "epe_occluded"} | {
        *("epe_speed_1_to_4", "epe_speed_above_4", "epe_from_occlusion_below_2", "epe_from_occlusion_above_2")
    }
    assert all(value == pytest.approx(5, abs=1e-4) for value in own.values()) and found["fl_all"] == 100
    assert found["zero_epe"] == pytest.approx(still) and found["ratio"] == pytest.approx(5 / still)
    assert found["other_epe"] == found["other_epe_occluded"] == found["other_fl_all"] == 0


def test_every_scale_has_its_share() -> None:
    """Flow that is right at a coarse scale is wrong at the edges of what moves only, the less the finer the scale."""
    found = Flow(level="one").measure(World())
    assert 0.02 < found["scale_1_epe"] < found["scale_0_epe"] < 0.5 * found["zero_epe"]
    assert "scale_2_epe" not in found
    whole = World(batch=digits() | {"flow": torch.tensor([2.0, -1.0]).view(2, 1, 1).expand(8, 2, 2, 32, 32)})
    found = Flow(level="one").measure(whole)
    assert found["scale_0_epe"] == pytest.approx(0, abs=1e-5) and found["scale_1_epe"] == pytest.approx(0, abs=1e-5)


def test_what_is_not_known_is_not_scored() -> None:
    batch = digits()
    known = torch.zeros_like(batch["occluded"])
    known[..., :16] = True
    broken = torch.where(known[:, :, None], batch["flow"], 1e6)
    world = World(batch=batch | {"flow": broken, "known": known})
    world.predictions = lambda level, split: {"flow": batch["flow"]}  # type: ignore[method-assign]
    found = Flow(level="one").measure(world)
    assert found["epe"] == 0 and found["zero_epe"] == pytest.approx(float(batch["flow"].norm(dim=2)[known].mean()))


def test_methods_that_learn_nothing_stand_beside() -> None:
    data = PhotosInMotion(0, size=64).split("test")
    found = Flow(level="one", classical=["dis", "farneback"]).measure(
        World(batch=data.batch(torch.arange(12), torch.device("cpu")))
    )
    assert found["dis_epe"] < 0.6 * found["zero_epe"] and found["dis_epe_visible"] < found["dis_epe"]
    assert {name.removeprefix("farneback_") for name in found if name.startswith("farneback_")} == {
        name for name in found if name in ("epe", "epe_visible", "epe_occluded", "fl_all")
    }


def test_nothing_that_moves_has_no_ratio() -> None:
    found = Flow(level="other").measure(World(batch=digits() | {"flow": torch.zeros(8, 2, 2, 32, 32)}))
    assert found["epe"] == found["zero_epe"] == 0 and "ratio" not in found


def test_what_cannot_be_compared_is_a_mistake() -> None:
    with pytest.raises(Mistake, match="level 'one' predicts no 'flow', but occluded, flow_0, flow_1"):
        Flow(level="one").measure(World(missing="flow"))
    world = World()
    world.predictions = lambda level, split: {"flow": torch.zeros(8, 2, 2, 16, 16)}  # type: ignore[method-assign]
    with pytest.raises(Mistake, match="flow of 8 x 2 x 2 x 16 x 16 numbers, and what is true has 8 x 2 x 2 x 32 x 32"):
        Flow(level="one").measure(world)
    with pytest.raises(ValueError, match=r"speeds \[4, 1\] must rise"):
        Flow(level="one", speeds=[4, 1])


@pytest.mark.parametrize("missing", ["", "occluded", "flow_0"])
def test_a_picture_has_two_lines_a_sample(missing: str, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8))
    batch = digits() | ({"known": torch.ones(8, 2, 32, 32, dtype=torch.bool)} if missing else {})
    Flow(level="one", classical=["dis"]).draw(World(batch=batch, missing=missing), figure)
    figure.savefig(tmp_path / "flow.png")
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    upper = ["frame 1", "frame 2", "true flow", "predicted", "dis", "error, black at 3 px"]
    lower = ["frame 2, warped back", "occluded, true", "occluded, predicted", "flow, 8 wide", "flow, 16 wide"]
    lost = {"occluded": lower[2:3], "flow_0": lower[3:]}.get(missing, [])
    assert titles == [*upper, *(title for title in lower if title not in lost)] * SHOWN
    assert [axis.texts[0].get_text() for axis in figure.axes if axis.texts] == ["5.00 px"] * SHOWN
    pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert all(one.min() >= 0 and one.max() <= 1 for one in pictures)
