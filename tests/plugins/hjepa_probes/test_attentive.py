"""The attentive probe, on tokens of which one says the class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Observation, Spec, States
from hjepa.errors import Mistake
from hjepa.randomness import Key
from hjepa_probes.attentive import Attentive, Reader, Seen
from hjepa_probes.linear import Linear


def gaussian(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class World:
    """Three classes. In the last step one token, anywhere, has a mark and the place of its class; the others are noise."""

    samples: int = 150
    steps: int = 2
    tokens: int = 6
    factor: float = 1.0
    shift: float = 0.0
    marked: bool = True
    wrong: dict[str, Tensor] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def observe(self, level: str, split: str, features: str = "online") -> Observation:
        self.asked.append((split, features))
        seed = {"train": 1, "test": 2}[split]
        label, sample = torch.arange(self.samples) % 3, torch.arange(self.samples)
        tokens = gaussian(seed, self.samples, self.steps, self.tokens, 8)
        where = gaussian(seed + 5, self.samples, self.tokens).argmax(1)
        if self.marked:
            tokens[sample, -1, where] = 2.5 * gaussian(7, 3, 8)[label] + 4 * torch.eye(8)[0]
        tokens = tokens * self.factor + self.shift * (split == "test")
        batch = {"label": label, "ids": sample} | (self.wrong if split == "train" else {})
        return Observation(States(tokens, torch.arange(self.steps).expand(self.samples, -1), (self.tokens,)), batch)

    def predict(self, level: str, split: str, start: int, steps: int) -> States:
        raise AssertionError("nothing is predicted")

    def spec(self, level: str) -> Spec:
        return Spec(width=8, grid=(self.tokens,), ticks=(0, 1))


def probe(**options: object) -> Attentive:
    return Attentive(level="l", target="label", **options)  # type: ignore[arg-type]


def read(world: World, **options: object) -> float:
    return probe(**options).measure(world)["accuracy"]


# --- what it reads ----------------------------------------------------------------------------------------------------


def test_what_one_token_says_is_found_where_a_mean_hides_it():
    assert read(World(tokens=24)) > 0.95
    assert Linear(level="l", target="label").measure(World(tokens=24))["accuracy"] < 0.8
    assert 0.15 < read(World(marked=False)) < 0.52


def test_the_last_step_or_all_of_them_are_read():
    first = World(steps=2)
    seen = first.observe("l", "train")
    turned = World()
    turned.observe = lambda level, split, features="online": replace(  # type: ignore[method-assign]
        seen, states=replace(seen.states, tokens=World().observe(level, split).states.tokens.flip(1))
    )
    assert read(turned, step="all") > 0.9 > 0.6 > read(turned, step="last")


def test_a_scale_of_the_tokens_changes_nothing_and_their_statistics_are_of_training_alone():
    assert abs(read(World(factor=1e-3)) - read(World(factor=1e3))) < 0.03
    assert read(World(shift=30.0)) < 0.7


def test_what_a_test_sample_is_taken_for_is_its_own_affair():
    """Nothing is fitted on test samples, no statistics either."""
    made, world = probe(epochs=3), World(samples=60)
    train, test = (made._seen(world, split) for split in ("train", "test"))
    best, predicted = made._predicted(train, test)
    others = replace(test, tokens=torch.cat([test.tokens[:20], 1e3 * test.tokens[20:] + 50]), labels=test.labels.flip(0))
    assert (made._predicted(train, others)[0], made._predicted(train, others)[1][:20].tolist()) == (
        best,
        predicted[:20].tolist(),
    )


def test_a_dead_level_is_at_chance():
    scores = probe().measure(World(factor=0.0))
    assert scores["accuracy"] == pytest.approx(1 / 3, abs=0.01) == scores["chance"]


def test_scores_are_the_same_twice_and_follow_the_seed():
    hard = World(samples=60, factor=1.0)
    scores = [probe(seed=seed, epochs=3).measure(hard) for seed in (0, 0, 1, 2)]
    assert scores[0] == scores[1]
    assert scores[0].keys() == {"accuracy", "chance", "lr", "weight_decay"}
    torch.rand(3)
    assert probe(epochs=3).measure(hard) == scores[0]
    assert scores[0] != scores[2] or scores[0] != scores[3]


# --- settings side by side --------------------------------------------------------------------------------------------


def test_each_setting_learns_as_it_would_alone():
    world = World(samples=60)
    train, test = (probe()._seen(world, split) for split in ("train", "test"))
    grid = {"lr": (1e-3, 1e-2), "weight_decay": (0.0, 1.0)}
    together = probe(epochs=3, **grid)
    logits = fitted(together, train)(test)
    for place, (lr, decay) in enumerate(together.settings):
        alone = fitted(probe(epochs=3, lr=(lr,), weight_decay=(decay,)), train)(test)
        torch.testing.assert_close(logits[place], alone[0], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])


def fitted(made: Attentive, train: Seen) -> Reader:
    reader = Reader(torch.zeros(8), torch.ones(8), 4, 3, len(made.settings), made.key)
    made._fit(reader, train)
    return reader


def test_the_best_setting_is_chosen_on_training_samples():
    """A rate of 0 learns nothing. Whatever the test samples say, the choice is the same."""
    scores = probe(lr=(1e-12, 3e-3), weight_decay=(0.1,)).measure(World())
    assert scores["lr"] == 3e-3 and scores["accuracy"] > 0.8
    assert probe(lr=(3e-3, 1e-12), weight_decay=(0.1,)).measure(World())["lr"] == 3e-3
    upside_down = World()
    test = upside_down.observe("l", "test").batch["label"]
    upside_down.observe = lambda level, split, features="online": replace(  # type: ignore[method-assign]
        World().observe(level, split), batch={"label": test if split == "train" else (test + 1) % 3}
    )
    assert probe(lr=(1e-12, 3e-3), weight_decay=(0.1,)).measure(upside_down)["lr"] == 3e-3


# --- properties -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from([1, 3, 8, 12]), st.integers(0, 2**32))
def test_the_order_of_tokens_and_saying_them_twice_change_nothing(count, samples, width, seed):
    tokens, labels = gaussian(seed, samples, count, width), torch.zeros(samples, dtype=torch.long)
    reader = Reader(torch.zeros(width), torch.ones(width), 4, 3, 2, Key.of(seed))
    for own in reader.own:
        own["look"].data.mul_(40)
    there = gaussian(seed + 1, samples, count) > -1
    logits = reader(Seen(tokens, there, labels))
    order = gaussian(seed + 2, count).argsort()
    torch.testing.assert_close(reader(Seen(tokens[:, order], there[:, order], labels)), logits, atol=1e-5, rtol=1e-4)
    twice = Seen(torch.cat([tokens, tokens], 1), torch.cat([there, there], 1), labels)
    torch.testing.assert_close(reader(twice), logits, atol=1e-5, rtol=1e-4)
    other = torch.where(there[..., None], tokens, 1e6)
    torch.testing.assert_close(reader(Seen(other, there, labels)), logits, atol=1e-5, rtol=1e-4)
    assert logits.isfinite().all()  # also where no token is there


def test_one_query_needs_no_keys_and_values_of_each_token():
    """The same as attention with keys, values and heads written out."""
    reader = Reader(torch.zeros(8), torch.ones(8), 2, 3, 1, Key.of(0))
    tokens, own = gaussian(0, 5, 7, 8), reader.own[0]
    keys, query = gaussian(1, 2, 8, 4), gaussian(2, 2, 4)
    own["look"].data = torch.einsum("hde,he->hd", keys, query) * 4**-0.5
    seen = torch.nn.functional.scaled_dot_product_attention(
        query[None, :, None].expand(5, -1, -1, -1),
        torch.einsum("bnd,hde->bhne", tokens, keys),
        torch.einsum("bnd,hde->bhne", tokens, own["value"].detach()),
    )
    y = own["query"] + seen[:, :, 0].flatten(1) @ own["merge"]
    hidden = torch.nn.functional.gelu(torch.nn.functional.layer_norm(y, (8,)) @ own["up"])
    expected = (y + hidden @ own["down"]) @ own["out"]
    found = reader(Seen(tokens, torch.ones(5, 7, dtype=torch.bool), torch.zeros(5).long()))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_nothing_flows_back_to_the_states_and_they_stay_as_they_are():
    world = World(samples=30)
    states = world.observe("l", "train").states
    states.tokens.requires_grad_()
    before = states.tokens.detach().clone()
    seen = Observation(states, {"label": torch.arange(30) % 3})
    world.observe = lambda level, split, features="online": seen  # type: ignore[method-assign]
    probe(epochs=1).measure(world)
    assert states.tokens.grad is None and torch.equal(states.tokens.detach(), before)


def test_whose_features_are_asked_for():
    for features in ("online", "target"):
        world = World(samples=30)
        probe(features=features, epochs=1).measure(world)
        Linear(level="l", target="label", features=features).measure(world)
        assert {asked for _, asked in world.asked} == {features}


# --- what a person is told --------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_told():
    with pytest.raises(Mistake, match="the batch has no 'lable' to tell"):
        Attentive(level="l", target="lable").measure(World())
    with pytest.raises(Mistake, match="'label' is 0 for all 150 samples; at least two classes"):
        read(World(wrong={"label": torch.zeros(150).long()}))
    with pytest.raises(ValueError, match="at least one lr and one weight_decay"):
        probe(lr=())
    with pytest.raises(ValueError, match="held_in is 1; some of the samples must choose"):
        probe(held_in=1.0)


def test_the_confusion_is_drawn():
    from matplotlib.figure import Figure

    figure = Figure()
    probe(epochs=5).draw(World(), figure)
    assert figure.axes[0].images[0].get_array().shape == (3, 3) and "right" in figure.get_suptitle()
