"""The regression probe, on a world whose states and predictions are known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor

from hjepa.contracts import Batch, Observation, Spec, States
from hjepa.errors import Mistake
from hjepa_probes.readout import aligned, fitted, r2, rmse, to_pixels
from hjepa_probes.regression import Regression, way

TICKS = 16
quick = settings(max_examples=20, deadline=None)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class World:
    """Dots on straight paths. Level `fast` sees every tick, `slow` every fourth; both hold position and velocity, mixed.

    `fast` predicts with a drift that grows with the number of its steps, `slow` exactly. `shift`: how far the positions that
    test batches tell are from those that the states hold.
    """

    samples: int = 60
    drift: float = 0.2
    shift: float = 0.0
    asked: list[tuple[str, str, int, int]] = field(default_factory=list)
    clocks: ClassVar[dict[str, int]] = {"fast": 1, "slow": 4}

    def truth(self, split: str) -> tuple[Tensor, Tensor]:
        """Position (n, TICKS, 2) and velocity (n, 2)."""
        seed = {"train": 1, "test": 2}[split]
        start, velocity = 3 * gaussian(seed, self.samples, 2), 0.5 * gaussian(seed + 10, self.samples, 2)
        return start[:, None] + velocity[:, None] * torch.arange(TICKS)[:, None], velocity

    def tokens(self, level: str, position: Tensor, velocity: Tensor) -> Tensor:
        """(..., 2, 5): 2 tokens of width 5."""
        mixing = gaussian(self.clocks[level], 4, 10)
        return (torch.cat([position, velocity.expand_as(position)], -1) @ mixing + 7).unflatten(-1, (2, 5))

    def observe(self, level: str, split: str, features: str = "online") -> Observation:
        position, velocity = self.truth(split)
        time = torch.arange(self.clocks[level] - 1, TICKS, self.clocks[level]).expand(self.samples, -1)
        seen = position[:, time[0]]
        told = position + self.shift * (split == "test")
        batch = {"position": told, "velocity": velocity, "ids": torch.arange(self.samples), "frames": frames(position)}
        return Observation(States(self.tokens(level, seen, velocity[:, None]), time), batch)

    def predict(self, level: str, split: str, start: int, steps: int) -> States:
        self.asked.append((level, split, start, steps))
        position, velocity = self.truth(split)
        clock = self.clocks[level]
        time = (start + 1) * clock - 1 + clock * torch.arange(1, steps + 1)
        wrong = self.drift * torch.arange(1, steps + 1)[:, None] if level == "fast" else 0.0
        path = position[:, :1] + velocity[:, None] * time[:, None] + wrong
        return States(self.tokens(level, path, velocity[:, None]), time.expand(self.samples, -1))

    def spec(self, level: str) -> Spec:
        return Spec(width=5, grid=(2,), ticks=tuple(range(self.clocks[level] - 1, TICKS, self.clocks[level])))


def frames(position: Tensor, size: int = 32) -> Tensor:
    """(n, T, 1, size, size): a bright dot for each position; a unit is 2 pixels to the right, or 1 down."""
    x, y = (2 * position[..., 0] + 16)[..., None, None], (position[..., 1] + 14)[..., None, None]
    rows, columns = torch.arange(size)[:, None], torch.arange(size)
    return torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 4)[:, :, None]


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["fast", "slow"])
@pytest.mark.parametrize("target", ["position", "velocity"])
def test_what_is_linear_in_the_states_is_read(level: str, target: str) -> None:
    """Also a target without a time axis, and one that must be taken at the level's own ticks."""
    scores = Regression(level=level, target=target, ridge=1e-9).measure(World())
    assert scores.keys() == {"r2", "error"}
    assert scores["r2"] > 0.9999
    assert scores["error"] < 0.02


def test_tokens_are_read_side_by_side_or_as_their_mean() -> None:
    """Of predicted states too. What two tokens say with opposite signs is not in their mean."""

    class Opposite(World):
        def tokens(self, level: str, position: Tensor, velocity: Tensor) -> Tensor:
            first = super().tokens(level, position, velocity)[..., :1, :]
            return torch.cat([first, -first], dim=-2)

    for ahead in (0, 1):
        made = {tokens: Regression(level="slow", target="position", tokens=tokens, ahead=ahead) for tokens in ("flat", "mean")}
        assert min(made[tokens].measure(World())["r2"] for tokens in made) > 0.95
        assert made["flat"].measure(Opposite())["r2"] > 0.95 > 0.1 > made["mean"].measure(Opposite())["r2"]


def test_targets_are_taken_at_the_ticks_of_the_states() -> None:
    world = World()
    seen = world.observe("slow", "test")
    assert torch.equal(aligned(seen, "position"), world.truth("test")[0][:, 3::4].double())
    assert torch.equal(aligned(seen, "velocity"), world.truth("test")[1].double()[:, None].expand(-1, 4, -1))


def test_without_frames_time_is_as_long_as_there_are_ticks() -> None:
    time = torch.tensor([[1, 3], [0, 3]])
    states = States(torch.zeros(2, 2, 1, 1), time)
    moving, still = torch.arange(16.0).reshape(2, 4, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    seen = Observation(states, {"moving": moving, "still": still, "label": torch.tensor([5, 6])})
    assert aligned(seen, "moving").tolist() == [[[2, 3], [6, 7]], [[8, 9], [14, 15]]]
    assert aligned(seen, "still").tolist() == [[[1, 2]] * 2, [[3, 4]] * 2]
    assert aligned(seen, "label").tolist() == [[[5]] * 2, [[6]] * 2]


def test_ahead_scores_predictions_beside_every_baseline() -> None:
    world = World(drift=0.5)
    scores = Regression(level="slow", target="position", ahead=2, against=["fast"], ridge=1e-9).measure(world)
    assert scores.keys() == {"r2", "r2_persistence", "r2_fast", "r2_encoded", "error"}
    assert scores["r2"] > 0.999
    assert scores["r2_encoded"] > 0.999
    assert scores["error"] < 0.05
    position = world.truth("test")[0][:, 3::4].double()
    assert scores["r2_persistence"] == pytest.approx(r2(position[:, :-2], position[:, 2:]), abs=1e-3)
    assert scores["r2_fast"] == pytest.approx(r2(position[:, 2:] + 8 * 0.5, position[:, 2:]), abs=1e-2)
    assert {one for one in world.asked if one[0] == "slow"} == {("slow", "test", 0, 2), ("slow", "test", 1, 2)}
    assert {one for one in world.asked if one[0] == "fast"} == {("fast", "test", 3, 8), ("fast", "test", 7, 8)}


@dataclass
class Eventful(World):
    """Something happens at tick 5 of the first ten samples, at tick 7 of the next ten, and at tick 11 of the ten after them."""

    def observe(self, level: str, split: str, features: str = "online") -> Observation:
        seen = super().observe(level, split, features)
        happens = torch.zeros(self.samples, TICKS, 1, dtype=torch.bool)
        for group, tick in enumerate((5, 7, 11)):
            happens[10 * group : 10 * (group + 1), tick] = True
        return replace(seen, batch=seen.batch | {"happens": happens, "even": torch.arange(self.samples) % 2 == 0})


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (0, [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]),
        (1, [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]),
        (2, [[1, 0], [1, 0], [1, 1], [0, 0]]),
    ],
)
def test_what_happens_between_own_ticks_is_on_the_way_and_what_is_known_already_is_not(
    ahead: int, expected: list[list[int]]
) -> None:
    """`slow` has states at the ticks 3, 7, 11, 15."""
    options = {"level": "slow", "target": "position", "ahead": ahead}
    scored = Regression(**options, only="happens")._found(Eventful()).scored
    assert scored[:40:10].int().tolist() == expected
    assert torch.equal(scored[:30], scored[:30:10].repeat_interleave(10, 0)) and not scored[30:].any()
    even = Regression(**options, only="even")._found(Eventful()).scored
    assert torch.equal(even, (torch.arange(60) % 2 == 0)[:, None].expand_as(even))


def test_what_is_held_against_predictions_is_scored_on_the_same_ways() -> None:
    options = {"level": "slow", "target": "position", "ahead": 2, "against": ["fast"], "ridge": 1e-9}
    world = Eventful(drift=0.5)
    scores = Regression(**options, only="happens").measure(world)
    position = world.truth("test")[0][:, 3::4].double()
    known, true = torch.cat((position[:30, 0], position[20:30, 1])), torch.cat((position[:30, 2], position[20:30, 3]))
    assert scores["r2_persistence"] == pytest.approx(r2(known, true), abs=1e-3)
    assert scores["r2_fast"] == pytest.approx(r2(true + 8 * 0.5, true), abs=1e-3)
    assert scores["r2_encoded"] > 0.999
    everywhere = Regression(**options).measure(world)
    assert all(abs(scores[name] - everywhere[name]) > 0.01 for name in ("r2_persistence", "r2_fast"))


def test_only_ways_are_scored_on_which_something_happens() -> None:
    """At tick 6 of the first thirty samples, which are predicted wrong from there on; the others are all right."""

    @dataclass
    class Stumbling(World):
        def observe(self, level: str, split: str, features: str = "online") -> Observation:
            seen = super().observe(level, split, features)
            happens = torch.zeros(self.samples, TICKS, dtype=torch.bool)
            happens[:30, 6] = True
            return replace(seen, batch=seen.batch | {"happens": happens, "never": torch.zeros_like(happens)})

        def predict(self, level: str, split: str, start: int, steps: int) -> States:
            true = super().predict(level, split, start, steps)
            wrong = (true.time >= 6) & (torch.arange(self.samples) < 30)[:, None] & (start < 6)
            return replace(true, tokens=torch.where(wrong[..., None, None], 0.0, true.tokens))

    world = Stumbling(drift=0.0)
    options = {"level": "fast", "target": "position", "ahead": 3}
    everywhere, there = (Regression(**options, only=only).measure(world) for only in (None, "happens"))
    assert everywhere["error"] == pytest.approx(there["error"] * (30 * 3 / (60 * 13)) ** 0.5, rel=1e-4)
    assert there["r2_encoded"] > 0.99 > there["r2"]
    assert Regression(**{**options, "ahead": 0}, only="happens").measure(world)["r2"] > 0.99
    figure = Figure()
    Regression(**options, only="happens").draw(world, figure)
    assert figure.get_suptitle() == f"position 3 own steps ahead, only happens, read from fast: R² {there['r2']:.2f}"
    with pytest.raises(ValueError, match="never is true nowhere"):
        Regression(**options, only="never").measure(world)


def test_doubt_is_that_of_the_states_that_are_scored() -> None:
    class Doubting(World):
        def predict(self, level: str, split: str, start: int, steps: int) -> States:
            states = super().predict(level, split, start, steps)
            return replace(states, doubt=states.time[:, :, None] + torch.tensor([0.0, 1.0]))

    found = Regression(level="fast", target="position", ahead=3).measure(Doubting())
    assert found.pop("doubt") == sum(range(3, TICKS)) / (TICKS - 3) + 0.5
    assert found == Regression(level="fast", target="position", ahead=3).measure(World())


def test_the_readout_is_fitted_on_encoded_states_so_that_it_repairs_nothing() -> None:
    """A constant drift of the predictions would be learned away by a readout fitted on predictions."""
    scores = Regression(level="fast", target="position", ahead=4, ridge=1e-9).measure(World(drift=1.0))
    assert scores["error"] == pytest.approx(4, abs=0.05)


def test_nothing_is_fitted_on_the_test_split() -> None:
    assert Regression(level="fast", target="position", ridge=1e-9).measure(World(shift=5))["error"] == pytest.approx(
        5, abs=0.05
    )


def test_error_and_r2_by_hand() -> None:
    truth = torch.tensor([[[0.0, 1.0, 5.0]], [[2.0, 3.0, 5.0]]]).double()
    assert r2(truth, truth) == 1
    assert rmse(truth, truth) == 0
    assert r2(truth + torch.tensor([1.0, 0.0, 3.0]), truth) == 0.5
    assert rmse(truth + torch.tensor([1.0, 0.0, 0.0]), truth) == pytest.approx((1 / 3) ** 0.5)
    assert r2(truth.mean(0, keepdim=True).expand_as(truth), truth) == 0
    assert r2(torch.zeros(2, 1, 1), torch.ones(2, 1, 1)) == 0


@quick
@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 30), st.floats(1e-6, 10))
def test_both_normal_equations_are_the_minimum(seed: int, samples: int, width: int, ridge: float) -> None:
    """The gradient of mean squared error plus ridge is zero, with more features than rows and with fewer."""
    tokens, target = gaussian(seed, samples, 2, 1, width), gaussian(seed + 1, samples, 2, 3).double()
    readout = fitted(tokens, target, ridge)
    x = (tokens.flatten(0, 1).flatten(1).double() - readout.mean) * readout.scale
    residual = readout(tokens).flatten(0, 1) - target.flatten(0, 1)
    assert torch.allclose(x.T @ residual / len(x) + ridge * readout.weight, torch.zeros(width, 3).double(), atol=1e-9)
    assert torch.allclose(residual.mean(0), torch.zeros(3).double(), atol=1e-9)


@quick
@given(st.integers(0, 2**31), st.floats(1e-4, 1e4), st.floats(-100, 100))
def test_scale_and_offset_of_the_features_change_nothing(seed: int, factor: float, offset: float) -> None:
    tokens, target = gaussian(seed, 30, 2, 2, 3).double(), gaussian(seed + 1, 30, 2, 2).double()
    moved = tokens * factor + offset
    assert torch.allclose(fitted(tokens, target, 0.1)(tokens), fitted(moved, target, 0.1)(moved), atol=1e-6)


def test_a_dead_level_reads_the_mean() -> None:
    """Constant features, also those that are constant up to rounding, are read as nothing."""
    target = gaussian(0, 50, 2, 1).double()
    dead = torch.full((50, 2, 1, 4), 0.1) + 2e-9 * gaussian(1, 50, 2, 1, 4)
    assert torch.allclose(fitted(dead, target, 1e-3)(dead), target.mean().expand_as(target))


# --- what can be wrong -----------------------------------------------------------------------------------------------


def test_a_missing_target_is_named_with_what_there_is() -> None:
    with pytest.raises(Mistake, match=r"no 'positon'.*frames, ids, position, velocity, did you mean 'position'\?"):
        Regression(level="slow", target="positon").measure(World())


def test_ways_between_clocks() -> None:
    fast, slow = torch.arange(16).expand(3, -1), torch.arange(3, 16, 4).expand(3, -1)
    tick = torch.ones(3, dtype=torch.int64)
    assert way("fast", fast, 1, 3 * tick, 11 * tick) == (3, 8)
    assert way("slow", slow, 4, 5 * tick, 11 * tick) == (0, 2)
    with pytest.raises(ValueError, match="never meets tick 10"):
        way("slow", slow, 4, 5 * tick, 10 * tick)
    with pytest.raises(ValueError, match="no state yet at tick 2"):
        way("slow", slow, 4, 2 * tick, 7 * tick)
    with pytest.raises(ValueError, match="different numbers"):
        way("fast", fast, 1, torch.tensor([1, 2, 2]), 4 * tick)


def test_impossible_options() -> None:
    with pytest.raises(ValueError, match="ahead is 0"):
        Regression(level="slow", target="position", against=["fast"])
    with pytest.raises(ValueError, match="4 own steps"):
        Regression(level="slow", target="position", ahead=4).measure(World())


# --- pictures --------------------------------------------------------------------------------------------------------


def test_positions_find_their_pixels() -> None:
    world = World(samples=200)
    whole = Regression(level="fast", target="position")._found(world)
    inside = [i for i, p in enumerate(world.truth("test")[0]) if p[:, 0].abs().max() < 6 and p[:, 1].abs().max() < 10]
    assert len(inside) > 20
    found = type(whole)(*(None if part is None else part[inside] for part in vars(whole).values()))
    place = to_pixels(world.observe("fast", "test").batch["frames"][inside], found.time, found.truth)
    assert place is not None
    assert torch.allclose(place, torch.tensor([[2, 1], [16, 14]]).double(), atol=0.05)


def test_pixels_are_found_where_each_sample_has_a_background_of_its_own() -> None:
    """Stripes that stand elsewhere in each film, and are brighter than the dot."""
    place = (24 * torch.rand(40, TICKS, 2, generator=torch.Generator().manual_seed(5)) + 4).round()
    side = torch.arange(32.0)
    dot = torch.exp(-((side - place[..., :1]) ** 2)[..., None, :] - ((side - place[..., 1:]) ** 2)[..., :, None])
    stripes = 3.0 * (gaussian(6, 40, 1, 1, 32) > 0.5)
    time = torch.arange(TICKS).expand(40, -1)
    for seen in (slice(None), slice(TICKS - 1, None)):
        found = to_pixels((dot + stripes)[:, :, None], time[:, seen], (place / 10 - 1)[:, seen])
        assert found is not None
        torch.testing.assert_close(found, torch.tensor([[10.0, 10], [10, 10]]).double(), atol=0.05, rtol=0)


@pytest.mark.parametrize("target", ["position", "velocity", "ids"])
def test_every_target_has_a_picture(target: str, tmp_path: Path) -> None:
    figure = Figure(figsize=(10, 2))
    Regression(level="slow", target=target, ahead=1).draw(World(), figure)
    figure.savefig(tmp_path / "strip.png")
    assert figure.axes


def test_batch_is_left_as_it_was() -> None:
    world = World()
    batch: Batch = world.observe("slow", "test").batch
    before = {name: value.clone() for name, value in batch.items()}
    aligned(Observation(world.observe("slow", "test").states, batch), "position")
    assert all(torch.equal(batch[name], before[name]) for name in batch)
