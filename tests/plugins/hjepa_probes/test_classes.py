"""The probes of a class label, on a world whose states are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Batch, Observation, Spec, States
from hjepa.errors import Mistake
from hjepa_probes.knn import Knn
from hjepa_probes.linear import Linear

PROBES = [Linear, Knn]
probes = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class World:
    """Three classes, each around a place of its own; the last of 3 steps holds it, the others hold noise alone.

    spread: of a class around its place; offset, factor: of all features, of test samples too; shift: of test samples alone.
    """

    samples: int = 90
    spread: float = 0.3
    offset: float = 0.0
    factor: float = 1.0
    shift: float = 0.0
    more: Batch | None = None

    def observe(self, level: str, split: str, features: str = "online") -> Observation:
        seed = {"train": 1, "test": 2}[split]
        label = torch.arange(self.samples) % 3
        tokens = self.spread * gaussian(seed, self.samples, 3, 2, 4)
        tokens[:, -1] += 2 * gaussian(7, 3, 2, 4)[label]
        tokens = tokens * self.factor + self.offset + self.shift * (split == "test")
        batch = {"label": label, "ids": torch.arange(self.samples), **(self.more or {})}
        return Observation(States(tokens, torch.arange(3).expand(self.samples, 3)), batch)

    def predict(self, level: str, split: str, start: int, steps: int) -> States:
        raise AssertionError("nothing is predicted")

    def spec(self, level: str) -> Spec:
        return Spec(width=4, grid=(2,), ticks=(0, 1, 2))


@probes
def test_what_is_there_is_read_and_nothing_else(probe: Any) -> None:
    assert probe(level="l", target="label").measure(World())["accuracy"] > 0.97
    noise = World(samples=900, more={"label": torch.randint(0, 3, (900,), generator=torch.Generator().manual_seed(3))})
    assert 0.2 < probe(level="l", target="label").measure(noise)["accuracy"] < 0.47


@probes
def test_the_last_step_or_the_mean_is_read(probe: Any) -> None:
    """Two steps of noise hide a third of the place."""
    world = World(spread=2.0)
    last, mean = (probe(level="l", target="label", step=step).measure(world)["accuracy"] for step in ("last", "mean"))
    assert last != mean and min(last, mean) > 0.4


@probes
def test_tokens_are_read_as_their_mean_or_side_by_side(probe: Any) -> None:
    """A class that two tokens say with opposite signs is not in their mean; one that is not there is in neither."""
    place = 2 * gaussian(7, 3, 1, 4)[torch.arange(90) % 3]
    opposite = [0.3 * gaussian(seed, 90, 3, 2, 4) for seed in (1, 2)]
    for tokens in opposite:
        tokens[:, -1] += torch.cat([place, -place], dim=1)
    for name, low, high in (("mean", 0.2, 0.5), ("flat", 0.97, 1.0)):
        assert low <= told(probe(level="l", target="label", tokens=name), opposite) <= high
    there = torch.tensor([True, False]).expand(90, 3, 2)
    garbage = [torch.where(there[..., None], x, 1e9) for x in opposite]
    for name in ("mean", "flat"):
        made = probe(level="l", target="label", tokens=name)
        assert told(made, garbage, there) == told(made, opposite, there) > 0.97


def told(made: Any, tokens: list[Tensor], valid: Tensor | None = None) -> float:
    class Fixed(World):
        def observe(self, level: str, split: str, features: str = "online") -> Observation:
            seen = super().observe(level, split)
            given = replace(seen.states, tokens=tokens[split == "test"], valid=valid)
            return replace(seen, states=given)

    return made.measure(Fixed())["accuracy"]


@probes
def test_scores_are_the_same_twice_and_chance_is_the_commonest_class(probe: Any) -> None:
    label = torch.tensor([0] * 50 + [1] * 40)
    scores = [probe(level="l", target="label").measure(World(spread=3.0, more={"label": label})) for _ in "ab"]
    assert scores[0] == scores[1] and scores[0].keys() == {"accuracy", "chance"}
    assert scores[0]["chance"] == pytest.approx(5 / 9)


@probes
@settings(max_examples=8, deadline=None)
@given(st.sampled_from([1e-3, 1e3]), st.floats(-50, 50))
def test_scale_and_offset_of_the_states_change_nothing(probe: Any, factor: float, offset: float) -> None:
    one, other = World(spread=2.0), World(spread=2.0, factor=factor, offset=offset * factor)
    scores = [probe(level="l", target="label").measure(world)["accuracy"] for world in (one, other)]
    assert scores[0] == pytest.approx(scores[1], abs=0.04)


@probes
def test_statistics_are_of_the_training_samples_alone(probe: Any) -> None:
    """A test split that lies elsewhere is not moved back."""
    assert probe(level="l", target="label").measure(World(shift=30.0))["accuracy"] < 0.7


@probes
def test_few_shots_are_the_first_of_each_class(probe: Any) -> None:
    world = World(spread=2.0)
    few, all_of_them = (probe(level="l", target="label", shots=shots).measure(world) for shots in (1, 0))
    assert few["accuracy"] < all_of_them["accuracy"]
    assert probe(level="l", target="label", shots=30).measure(world) == all_of_them
    made = probe(level="l", target="label", shots=2)
    assert made._data(world).train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(Mistake, match=r"only 30 among the training samples; raise evaluate\.samples"):
        probe(level="l", target="label", shots=31).measure(world)


@probes
def test_a_dead_level_is_at_chance(probe: Any) -> None:
    world = World(factor=0.0, offset=3.0)
    scores = probe(level="l", target="label").measure(world)
    assert scores["accuracy"] == pytest.approx(1 / 3, abs=0.01) == scores["chance"]


@probes
@pytest.mark.parametrize(
    ("target", "value", "said"),
    [
        ("lable", None, r"the batch has no 'lable' to tell; it has ids, label, did you mean 'label'"),
        ("label", torch.rand(90), "holds float32 numbers; a class label is a whole number"),
        ("label", torch.arange(90) % 3 - 1, "'label' holds -1; classes are numbered from 0"),
        ("label", torch.zeros(90).long(), "'label' is 0 for all 90 samples; at least two classes"),
        ("label", torch.zeros(90, 2).long(), r"'label' is \(90, 2\); one label a sample is needed"),
    ],
)
def test_what_is_no_class_label_is_told(probe: Any, target: str, value: Tensor | None, said: str) -> None:
    with pytest.raises(Mistake, match=said):
        probe(level="l", target=target).measure(World(more=None if value is None else {"label": value}))


@probes
def test_a_label_may_have_axes_of_length_one_and_classes_any_whole_number(probe: Any) -> None:
    label = (torch.arange(90) % 3)[:, None] * 4
    assert probe(level="l", target="label").measure(World(more={"label": label}))["accuracy"] > 0.97


def test_more_neighbours_than_samples_all_vote() -> None:
    assert Knn(level="l", target="label", k=5000).measure(World())["accuracy"] > 0.9
    assert Knn(level="l", target="label", k=1).measure(World())["accuracy"] > 0.97


@probes
def test_the_confusion_is_drawn(probe: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    probe(level="l", target="label").draw(World(), figure)
    shares = figure.axes[0].images[0].get_array()
    assert shares.shape == (3, 3) and (shares.sum(1) > 0.999).all() and shares.diagonal().min() > 0.9
    assert "right" in figure.get_suptitle()
