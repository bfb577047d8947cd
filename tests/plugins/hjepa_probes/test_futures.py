"""The probe of futures, on a world of which all is known: points that go left or right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Observation, Spec, States
from hjepa_probes.futures import Futures

SAMPLES, TICKS = 40, 6


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class World:
    """Each step a point goes up by 1, and from tick 3 on to its own side by 1. States are positions, mixed.

    `latent`: 0 where the level predicts the mean alone; `sides`: those that futures take, in turn.
    """

    latent: int = 1
    sides: tuple[float, ...] = (-1.0, 1.0)
    shuffled: bool = True

    def truth(self, split: str) -> Tensor:
        """(n, TICKS, 2)."""
        seed = {"train": 1, "test": 2}[split]
        side = gaussian(seed + 5, SAMPLES).sign()
        return self.path(3 * gaussian(seed, SAMPLES, 2), side)

    def path(self, start: Tensor, side: Tensor) -> Tensor:
        time = torch.arange(TICKS)
        aside = side[:, None] * (time - 2).clamp(min=0)
        return start[:, None] + torch.stack([aside, time.expand(len(start), -1)], dim=-1)

    def states(self, path: Tensor, first: int = 0) -> States:
        tokens = (path @ gaussian(9, 2, 5) + 3)[:, :, None]
        return States(tokens, torch.arange(first, first + path.shape[1]).expand(len(path), -1))

    def observe(self, level: str, split: str) -> Observation:
        path = self.truth(split)
        batch = {"position": path, "height": path[..., 1:], "ids": torch.arange(SAMPLES)}
        return Observation(self.states(path), batch)

    def predict(self, level: str, split: str, start: int, steps: int, futures: int = 0) -> States:
        begin = self.truth(split)[:, 0].repeat_interleave(max(1, futures), dim=0)
        side = torch.tensor(self.sides).repeat(len(begin))[: len(begin)] if futures else torch.zeros(len(begin))
        return self.states(self.path(begin, side)[:, start + 1 : start + 1 + steps], start + 1)

    def energies(self, level: str, split: str) -> dict[str, Tensor]:
        found = {"energy": torch.full((SAMPLES, 2), 0.1), "trivial": torch.full((SAMPLES, 2), 0.5)}
        return found | {"shuffled": torch.full((SAMPLES, 2), 0.4)} if self.shuffled else found

    def spec(self, level: str) -> Spec:
        return Spec(width=5, ticks=tuple(range(TICKS)), latent=self.latent)


def measured(world: World, **options: object) -> dict[str, float]:
    settings = {"level": "one", "target": "position", "start": 2, "ahead": 3, "count": 4, "ridge": 1e-9} | options
    return Futures(**settings).measure(world)


def test_futures_that_cover_both_ways() -> None:
    """By hand: truth is 3 to a side; the mean and z = 0 are straight on."""
    scores = measured(World())
    assert scores["best"] == pytest.approx(0, abs=1e-4)
    assert scores["mean"] == pytest.approx((9 / 2) ** 0.5, abs=1e-4)
    assert scores["without_z"] == pytest.approx((9 / 2) ** 0.5, abs=1e-4)
    assert scores["spread"] == pytest.approx((9 / 2) ** 0.5, abs=1e-4)
    assert scores["persistence"] == pytest.approx((9 / 2 + 9 / 2) ** 0.5, abs=1e-4)
    assert scores["encoded"] == pytest.approx(0, abs=1e-4)
    assert scores["coverage"] == 1


def test_futures_that_know_one_way_cover_half() -> None:
    world = World(sides=(1.0, 1.0, 1.0, -0.1))
    right = (world.truth("test")[:, -1, 0] > world.truth("test")[:, 0, 0]).double().mean()
    assert measured(world)["coverage"] == pytest.approx(float(right))


def test_a_spread_without_meaning_covers_nothing() -> None:
    scores = measured(World(sides=(0.1, -0.1)))
    assert scores["spread"] > 0.1 and scores["coverage"] == 0


def test_a_level_without_a_latent_has_one_future() -> None:
    scores = measured(World(latent=0))
    assert scores["best"] == scores["mean"] == scores["without_z"] > 1
    assert scores["spread"] == scores["coverage"] == 0


def test_the_gap_by_hand() -> None:
    scores = measured(World())
    assert scores["energy"] == pytest.approx(0.1) and scores["shuffled"] == pytest.approx(0.4)
    assert scores["gap"] == pytest.approx(0.3 / 0.5)
    assert "gap" not in measured(World(shuffled=False))


def test_too_far_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="one has 6 own steps a sample: 4 after 2 are too many"):
        measured(World(), ahead=4)


@pytest.mark.parametrize(("target", "lines"), [("position", 7), ("height", 7)])
def test_a_picture_with_all_ways(target: str, lines: int, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2))
    Futures(level="one", target=target, start=2, ahead=3, count=4).draw(World(), figure)
    figure.savefig(tmp_path / "fan.png")
    assert len(figure.axes) == 6 and all(len(axis.lines) == lines for axis in figure.axes)
    ways = [line for line in figure.axes[0].lines if line.get_label() == "what came"]
    assert len(ways) == 1 and len(ways[0].get_xdata()) == 4


def test_positions_are_drawn_where_they_are_in_frames() -> None:
    from matplotlib.figure import Figure

    class Filmed(World):
        def observe(self, level: str, split: str) -> Observation:
            seen = super().observe(level, split)
            x, y = (2 * seen.batch["position"][..., i, None, None] + 32 for i in (0, 1))
            ink = torch.exp(-((torch.arange(64) - x) ** 2 + (torch.arange(64)[:, None] - y) ** 2) / 4)
            return Observation(seen.states, seen.batch | {"frames": ink[:, :, None]})

    figure = Figure(figsize=(10, 2))
    world = Filmed()
    Futures(level="one", target="position", start=2, ahead=3, count=4).draw(world, figure)
    (square,) = (line for line in figure.axes[0].lines if line.get_label() == "last known")
    known = 2 * world.truth("test")[0, 2] + 32
    assert [square.get_xdata()[0], square.get_ydata()[0]] == pytest.approx(known.tolist(), abs=1)
    assert figure.axes[0].images
