"""The graph of levels: which frames each sees, who learns from whom, and what cannot work."""

from __future__ import annotations

import importlib.metadata as metadata
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hjepa import compose, loading, stack, study
from hjepa.contracts import Batch, Build, Count, Encoder, Here, Outcome, Spec, States, Whole
from hjepa.errors import Mistake, StudyMistake
from hjepa.hookspecs import hookimpl
from hjepa.nn.states import states_of
from hjepa.registry import GROUP, Registry, load
from hjepa.stack import Pass, Stack
from hjepa.study import Study, parse

# --- a clock as a source, and levels that pass on what they read ------------------------------------------------------


class Clock:
    """Tokens and actions that say their own tick, and sample: 1000 * id + tick."""

    def __init__(self, seed: int, *, frames: Count = 8, acts: Whole = 0, wide: Count = 1) -> None:
        self.frames, self.acts, self.wide = frames, acts, wide
        ticks = tuple(range(frames))
        self.streams = {
            "clock": Spec(width=wide, ticks=ticks, actions=acts),
            "label": Spec(width=2),
            "slow": Spec(width=1, ticks=tuple(range(2, frames, 3)) or (0,)),
            "maps": Spec(maps=((1, 4, 4),), ticks=ticks),
        }

    def split(self, name: str) -> Clock:
        return self

    def __len__(self) -> int:
        return 32

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        def told(ticks: list[int], wide: int) -> Tensor:
            return (1000.0 * ids[:, None, None] + torch.tensor(ticks)[:, None]).expand(-1, -1, wide)

        ticks = list(range(self.frames))
        return {
            "clock": told(ticks, self.wide),
            "actions": told(ticks[:-1], self.acts),
            "label": ids[:, None] + torch.tensor([0.25, 0.5]),
            "slow": told(list(self.streams["slow"].ticks), 1),
            "maps": told(ticks, 1)[..., None, None].expand(-1, -1, -1, 4, 4),
        }


class Seen(nn.Module):
    """A level whose states are all tokens of what it reads, times a weight that begins at 1."""

    def __init__(self, spec: Spec, *, needs: Count = 1, encoder: Build[Encoder] | None = None) -> None:
        super().__init__()
        self.given = spec
        self.weight = nn.Parameter(torch.ones(()))
        self.encoder = encoder(spec) if encoder else None
        self.spec = self.encoder.spec if self.encoder else spec.giving(spec.width, spec.grid)
        self.needs = needs
        self.encoded: list[int] = []
        self.seen: dict[str, Any] = {}

    def encode(self, below: States) -> States:
        self.encoded += below.time[0].tolist()
        if self.encoder:
            return states_of(self.encoder, below)
        tokens = below.tokens if not below.parts else torch.cat([part.tokens for part in below.parts], dim=-1)
        return States(tokens * self.weight, below.time, below.grid, actions=below.actions)

    def forward(self, here: Here) -> Outcome:
        self.seen = {
            "below": here.below,
            "states": here.states,
            "condition": here.condition,
            "step": here.step,
            "key": here.key,
        }
        mean = here.states.tokens.mean((2, 3))
        return Outcome(mean, mean.detach(), {"mean": mean.mean()}, {"states": here.states.tokens.flatten(0, 2)})


class Deep(nn.Module):
    """An encoder of many layers."""

    def __init__(self, spec: Spec, *, layers: Count = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(spec.width, spec.width) for _ in range(layers))
        self.spec = spec.giving(spec.width)

    def forward(self, below: States, layers: tuple[str, ...] = ()) -> None: ...


class Wrapped(nn.Module):
    """An encoder around another."""

    def __init__(self, spec: Spec, *, inner: Build[Encoder]) -> None:
        super().__init__()
        self.inner = inner(spec)
        self.spec = self.inner.spec

    def forward(self, below: States, layers: tuple[str, ...] = ()) -> None: ...


class Failing:
    """A dataset that its disk has left."""

    def __init__(self, seed: int) -> None:
        raise OSError("no such disk\nand more of it")

    def split(self, name): ...

    def __len__(self): ...

    def batch(self, ids, device): ...


@hookimpl
def register(components) -> None:
    components.add("dataset", "clock", f"{__name__}:Clock")
    components.add("dataset", "failing", f"{__name__}:Failing")
    components.add("level", "seen", f"{__name__}:Seen")
    components.add("encoder", "deep", f"{__name__}:Deep")
    components.add("encoder", "wrapped", f"{__name__}:Wrapped")


@pytest.fixture(scope="module")
def installed() -> Registry:
    return load(points=[*metadata.entry_points(group=GROUP), metadata.EntryPoint("toys", __name__, GROUP)])


@pytest.fixture(scope="module")
def reads(installed: Registry) -> Callable[..., Study]:
    """A study of levels on a clock."""

    def made(levels: dict[str, Any], seed: int = 0, **source: Any) -> Study:
        named = {label: {"name": "seen"} | keys for label, keys in levels.items()}
        return parse({"seed": seed, "data": {"time": {"name": "clock"} | source}, "levels": named}, installed)

    return made


def made(read: Study) -> tuple[Stack, dict[str, Batch]]:
    """A stack, and the first batch of its sources."""
    datasets = compose.make_sources(read)
    read.complain()
    whole = Stack(read, compose.streams_of(datasets))
    sources = loading.sources(read, datasets, {label: [] for label in datasets})
    ((_, batches),) = loading.batches(sources, range(1), 0, torch.device("cpu"))
    return whole, batches


def refused(read: Study) -> dict[str, str]:
    with pytest.raises(StudyMistake) as raised:
        stack.check(read)
    return {problem.path: problem.message for problem in raised.value.problems}


# --- which frames a level sees ----------------------------------------------------------------------------------------

STEPS = st.tuples(st.integers(1, 4), st.integers(1, 5))


def ticks_of(chain: list[tuple[int, int]], step: int) -> list[int]:
    """The ticks that one own step of the uppermost level sees, by the rule as it is written: stride, then window."""
    if not chain:
        return [step]
    stride, window = chain[-1]
    return [tick for offset in range(window) for tick in ticks_of(chain[:-1], step * stride + offset)]


def actions_of(chain: list[tuple[int, int]], step: int) -> list[int]:
    """The actions between one own step and the next: those from the last step below of one to the last of the other."""
    if not chain:
        return [step]
    stride, window = chain[-1]
    return [tick for offset in range(stride) for tick in actions_of(chain[:-1], step * stride + window - 1 + offset)]


@settings(deadline=None, max_examples=60)
@given(chain=st.lists(STEPS, min_size=1, max_size=3), frames=st.integers(1, 30))
def test_each_level_sees_exactly_the_frames_that_its_stride_and_window_promise(
    chain: list[tuple[int, int]], frames: int, reads: Callable[..., Study]
):
    """P27, with actions; a last window that is not full is left out; what gives no step is refused with the sum."""
    levels = {f"l{depth}": {"stride": stride, "window": window} for depth, (stride, window) in enumerate(chain)}
    read = reads(levels, frames=frames, acts=2, batch=3)
    shortest = max(ticks_of(chain, 0)) + 1
    if frames < shortest:
        said = refused(read)
        (path,) = said
        depth = int(path.removeprefix("levels.l"))
        assert max(ticks_of(chain[: depth + 1], 0)) >= frames
        assert f"source 'time' gives {frames}, which make 0 own steps" in said[path]
        return
    whole, batches = made(read)
    ids = batches["time"]["ids"]
    for depth in range(len(chain)):
        upto = chain[: depth + 1]
        states = whole.states(f"l{depth}", "time", batches["time"])
        steps = [ticks_of(upto, step) for step in range(30) if max(ticks_of(upto, step)) < frames]
        assert states.tokens[..., 0].tolist() == [[[1000 * number + tick for tick in seen] for seen in steps] for number in ids]
        assert states.time.tolist() == [[max(seen) for seen in steps]] * 3
        assert whole.levels[f"l{depth}"].given.ticks == tuple(max(seen) for seen in steps)
        assert whole.levels[f"l{depth}"].given.moves_on
        actions = [actions_of(upto, step) for step in range(len(steps) - 1)]
        assert states.actions[..., ::2].tolist() == [
            [[1000 * number + tick for tick in done] for done in actions] for number in ids
        ]


def test_a_level_needs_the_frames_that_the_sum_says(reads: Callable[..., Study]):
    levels = {"low": {"stride": 2, "window": 3}, "high": {"stride": 4, "needs": 3}}
    needed = ((3 - 1) * 4 + 4 - 1) * 2 + 3
    whole = stack.check(reads(levels, frames=needed))
    row = stack.described(whole)[1]
    assert (row["needs"], row["clock"], row["steps"], row["reads"]) == (needed, 8, 3, "time: low")
    assert row["sum"] == f"(3 - 1) * 4 + 4 = 12 steps of 'low', which need (12 - 1) * 2 + 3 = {needed} clock"
    said = refused(reads(levels, frames=needed - 1))["levels.high"]
    assert said == f"too few steps: 3 own steps need {row['sum']}; source 'time' gives {needed - 1}, which make 2 own steps"


def test_a_level_of_stride_one_without_an_encoder_is_the_level_below(installed: Registry):
    """P31: a hierarchy of one level is the flat model, bit for bit; an identity above it changes nothing."""
    parts = {"predictor": {"name": "causal", "depth": 1, "heads": 2}, "energy": "l2"}
    raw = {
        "data": {"video": {"name": "moving_digits", "frames": 6, "size": 16, "digit_size": 8, "batch": 4}},
        "levels": {"frame": {"name": "forecast", "encoder": {"name": "conv", "width": 8, "base": 4}, **parts}},
    }
    flat, batches = made(parse(raw, installed))
    raw["levels"]["same"] = {"name": "forecast", "encoder": "identity", **parts}
    both, _ = made(parse(raw, installed))
    assert torch.equal(
        flat.states("frame", "video", batches["video"]).tokens, both.states("same", "video", batches["video"]).tokens
    )
    both.levels["same"].predictor.load_state_dict(both.levels["frame"].predictor.state_dict())
    alone, outcomes = flat(batches, 0)["frame"], both(batches, 0)
    for outcome in (outcomes["frame"], outcomes["same"]):
        assert torch.equal(outcome.energy, alone.energy)
        assert torch.equal(outcome.trivial, alone.trivial)


def test_states_come_with_the_ticks_that_the_batch_has(reads: Callable[..., Study]):
    whole, batches = made(reads({"low": {"stride": 2}}, frames=4, batch=2))
    batches["time"]["ticks"] = torch.tensor([[3, 5, 9, 11], [0, 1, 2, 30]])
    assert whole.states("low", "time", batches["time"]).time.tolist() == [[5, 11], [1, 30]]


# --- what is read -----------------------------------------------------------------------------------------------------


def test_levels_follow_one_another_unless_they_say_what_they_read(reads: Callable[..., Study]):
    levels = {"a": {}, "b": {"stride": 2}, "c": {"reads": "slow"}, "d": {"reads": "a"}, "e": {}, "f": {"reads": ["a", "clock"]}}
    whole = stack.check(reads(levels))
    assert {label: node.reads for label, node in whole.nodes.items()} == {
        "a": ("clock",),
        "b": ("a",),
        "c": ("slow",),
        "d": ("a",),
        "e": ("d",),
        "f": ("a", "clock"),
    }


def test_streams_that_are_read_together_arrive_side_by_side(reads: Callable[..., Study]):
    levels = {"a": {"stride": 2}, "b": {"reads": "clock", "stride": 2, "window": 2}, "c": {"reads": ["a", "b"], "stride": 2}}
    whole, batches = made(reads(levels))
    assert [part.ticks for part in whole.levels["c"].given.parts] == [(3, 7), (3, 7)]
    whole(batches, 0)
    below = whole.levels["c"].seen["below"]
    assert below.time[0].tolist() == [3, 7]
    assert below.tokens.shape == (64, 2, 0, 0)
    assert [part.tokens.shape for part in below.parts] == [(64, 2, 4, 1), (64, 2, 4, 1)]


def test_streams_of_different_clocks_cannot_be_read_together(reads: Callable[..., Study]):
    said = refused(reads({"a": {"stride": 2}, "b": {"reads": ["clock", "a"]}}))
    assert list(said) == ["levels.b.reads"]
    assert "must keep the same ticks: clock at 0, 1, 2, 3 and 4 more; a at 1, 3, 5, 7" in said["levels.b.reads"]


@pytest.mark.parametrize(
    ("keys", "path", "said"),
    [
        ({"reads": "lable"}, "levels.b.reads", "did you mean 'label'? (there are: a, clock, label, slow, maps)"),
        ({"reads": "b"}, "levels.b.reads", "no level before 'b'"),
        ({"reads": "c"}, "levels.b.reads", "no level before 'b'"),
        ({"reads": []}, "levels.b.reads", "an empty list"),
        ({"data": "tiem"}, "levels.b.data", "no source 'tiem', did you mean 'time'"),
        ({"condition": "labl"}, "levels.b.condition", "did you mean 'label'"),
        ({"condition": "c"}, "levels.b.condition", "no level before"),
        ({"condition": "maps"}, "levels.b.condition", "'maps' gives no tokens"),
        ({"crop": 9}, "levels.b.crop", "at least 2 (what the level needs) and at most 8 (what it has); written: 9"),
        ({"crop": 1}, "levels.b.crop", "at least 2"),
        ({"stride": 10**9}, "levels.b", "which make 0 own steps"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_there_is(keys: dict, path: str, said: str, reads: Callable[..., Study]):
    messages = refused(reads({"a": {}, "b": {"needs": 2} | keys, "c": {"reads": "a"}}))
    assert list(messages) == [path]
    assert said in messages[path]


def test_a_source_that_fails_is_one_line_and_hides_nothing_else(installed: Registry):
    raw = {
        "data": {"bad": "failing", "time": "clock"},
        "levels": {"a": "seen", "b": {"name": "seen", "data": "time", "reads": "lable"}},
    }
    assert refused(parse(raw, installed)) == {
        "data.bad": "no such disk",
        "levels.b.reads": "no level before 'b' and no stream of 'time' is called 'lable', did you mean 'label'? "
        "(there are: a, clock, label, slow, maps)",
    }


def test_a_million_layers_are_refused_before_they_are_made(reads: Callable[..., Study], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compose, "LARGEST", 500)
    said = refused(reads({"a": {"encoder": {"name": "deep", "layers": 10**6}}}))
    assert said == {"levels.a.encoder": "more than 500 modules: one of the numbers is far too large"}
    stack.check(reads({"a": {"encoder": {"name": "deep", "layers": 400}}}))
    nn.ModuleList(nn.Identity() for _ in range(501))


def test_a_probe_of_a_level_that_is_not_there_is_refused(installed: Registry):
    probes = {"where": {"name": "regression", "level": "aa", "target": "label", "ahead": 1, "against": ["b"]}}
    raw = {"data": {"time": "clock"}, "levels": {"a": "seen"}, "probes": probes}
    assert set(refused(parse(raw, installed))) == {"probes.where.level", "probes.where.against"}


# --- several sources --------------------------------------------------------------------------------------------------


def test_a_level_can_be_read_on_another_source_than_its_own(installed: Registry):
    raw = {
        "data": {"one": {"name": "clock", "batch": 2}, "two": {"name": "clock", "frames": 6, "batch": 3}},
        "levels": {
            "a": {"name": "seen", "stride": 2},
            "b": {"name": "seen", "data": "two", "reads": "a", "stride": 2, "window": 1},
        },
    }
    whole, batches = made(parse(raw, installed))
    outcomes = whole(batches, 0)
    assert (outcomes["a"].energy.shape, outcomes["b"].energy.shape) == ((2, 4), (3, 2))
    assert whole.levels["b"].seen["below"].time[0].tolist() == [1, 5]
    resting = whole({"one": batches["one"]}, 0)
    assert list(resting) == ["a"]


def test_a_level_cannot_be_read_on_a_source_of_another_shape(installed: Registry):
    raw = {
        "data": {"one": "clock", "two": {"name": "clock", "wide": 3}},
        "levels": {"a": "seen", "b": {"name": "seen", "data": "two", "reads": "a"}},
    }
    said = refused(parse(raw, installed))
    assert said == {
        "data.two": "level 'a' reads tokens [] of width 1, and from source 'two' it would read tokens [] of width 3"
    }


def test_a_source_that_does_not_keep_its_promise_is_named(reads: Callable[..., Study]):
    whole, batches = made(reads({"a": {}}))
    batches["time"]["clok"] = batches["time"].pop("clock")
    with pytest.raises(Mistake, match="promises a stream 'clock' and its batch has none, did you mean 'clok'"):
        whole(batches, 0)


# --- crop, and only what is needed ------------------------------------------------------------------------------------


def test_only_steps_that_somebody_reads_are_encoded_and_each_once(reads: Callable[..., Study]):
    levels = {"low": {"frozen": True}, "high": {"stride": 4, "window": 2}, "top": {"reads": "low", "stride": 8, "window": 1}}
    whole, batches = made(reads(levels, frames=20))
    whole(batches, 0)
    assert whole.levels["low"].encoded == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17]
    assert whole.levels["high"].encoded == [1, 5, 9, 13, 17]


@settings(deadline=None, max_examples=30)
@given(chain=st.lists(STEPS, min_size=1, max_size=3), crop=st.integers(1, 4), step=st.integers(0, 50), acts=st.integers(0, 1))
@example(chain=[(1, 1), (3, 1)], crop=3, step=3, acts=1)
def test_what_is_encoded_sparsely_equals_what_is_encoded_densely(
    chain: list[tuple[int, int]], crop: int, step: int, acts: int, reads: Callable[..., Study]
):
    levels = {f"l{depth}": {"stride": stride, "window": window, "frozen": True} for depth, (stride, window) in enumerate(chain)}
    levels[f"l{len(chain) - 1}"] |= {"crop": crop, "frozen": False}
    read = reads(levels, frames=max(ticks_of(chain, crop + 2)) + 1, acts=acts, batch=2)
    whole, batches = made(read)
    label = f"l{len(chain) - 1}"
    dense = whole.states(label, "time", batches["time"])
    whole(batches, step)
    sparse = whole.levels[label].seen["states"]
    start = dense.time[0].tolist().index(int(sparse.time[0, 0]))
    wanted = dense.slice(start, start + crop)
    assert torch.equal(sparse.tokens, wanted.tokens)
    assert torch.equal(sparse.time, wanted.time)
    assert acts == 0 or torch.equal(sparse.actions, wanted.actions)


def test_a_crop_is_a_window_keyed_by_the_step(reads: Callable[..., Study]):
    whole, batches = made(reads({"low": {}, "high": {"stride": 2, "crop": 3}}, frames=24))
    windows = []
    for step in [*range(40), *range(3)]:
        whole.levels["high"].encoded.clear()
        whole(batches, step)
        assert whole.levels["high"].encoded == whole.levels["high"].seen["states"].time[0].tolist()
        windows.append(tuple(whole.levels["high"].encoded))
    assert windows[40:] == windows[:3]
    assert set(windows) == {(first, first + 2, first + 4) for first in range(1, 20, 2)}
    watched = Pass(whole, batches, step=0, whole=True)
    watched.outcomes()
    assert whole.levels["high"].seen["states"].steps == 12


def test_a_level_that_trains_on_a_crop_gives_all_steps_to_those_above(reads: Callable[..., Study]):
    whole, batches = made(reads({"low": {"crop": 2}, "high": {"stride": 2}}, frames=8))
    outcomes = whole(batches, 3)
    assert (outcomes["low"].energy.shape[1], outcomes["high"].energy.shape[1]) == (2, 4)


# --- conditions -------------------------------------------------------------------------------------------------------


def test_a_condition_without_time_holds_for_every_step(reads: Callable[..., Study]):
    whole, batches = made(reads({"a": {"condition": "label"}}, batch=3))
    assert whole.levels["a"].given.condition == 2
    whole(batches, 0)
    assert torch.equal(whole.levels["a"].seen["condition"], batches["time"]["label"][:, None])


@pytest.mark.parametrize("crop", [None, 3])
def test_a_condition_with_time_is_the_latest_that_each_step_may_know(crop: int | None, reads: Callable[..., Study]):
    whole, batches = made(reads({"a": {"condition": "slow", "crop": crop}}, frames=9, batch=2))
    whole(batches, 1)
    seen = whole.levels["a"].seen
    for sample, number in enumerate(batches["time"]["ids"].tolist()):
        known = [
            max((given for given in (2, 5, 8) if given <= tick), default=None) for tick in seen["states"].time[sample].tolist()
        ]
        assert seen["condition"][sample, :, 0].tolist() == [0 if tick is None else 1000 * number + tick for tick in known]


def test_a_level_can_be_a_condition(reads: Callable[..., Study]):
    whole, batches = made(reads({"late": {"stride": 4}, "fast": {"reads": "clock", "condition": "late"}}, frames=8, batch=1))
    whole(batches, 0)
    number = 1000 * int(batches["time"]["ids"])
    means = [0, 0, 0] + [number + 1.5] * 4 + [number + 5.5]
    assert whole.levels["fast"].seen["condition"][0, :, 0].tolist() == means


# --- who learns -------------------------------------------------------------------------------------------------------


def slopes(whole: Stack, batches: dict[str, Batch], of: str) -> dict[str, float | None]:
    """The gradient of each level's weight, of one level's loss."""
    outcome = whole(batches, 0)[of]
    weights = {label: level.weight for label, level in whole.levels.items() if level.weight.requires_grad}
    found = torch.autograd.grad(sum(outcome.terms.values()), list(weights.values()), allow_unused=True)
    return {label: None if slope is None else float(slope) for label, slope in zip(weights, found, strict=True)}


def test_gradient_flows_down_unless_it_is_stopped(reads: Callable[..., Study]):
    found = slopes(*made(reads({"low": {}, "mid": {}, "top": {}})), of="top")
    assert all(slope for slope in found.values())
    found = slopes(*made(reads({"low": {}, "mid": {}, "top": {"gradient": "stop"}})), of="top")
    assert found["top"]
    assert (found["low"], found["mid"]) == (None, None)
    found = slopes(*made(reads({"low": {}, "mid": {"frozen": True}, "top": {}})), of="top")
    assert (bool(found["top"]), found["low"]) == (True, None)
    found = slopes(*made(reads({"low": {}, "mid": {"gradient": "stop"}, "top": {}})), of="top")
    assert found["mid"]
    assert found["top"]
    assert found["low"] is None


def test_a_frozen_level_is_read_and_never_trained(reads: Callable[..., Study]):
    whole, batches = made(reads({"low": {}, "mid": {"frozen": True}, "top": {}}))
    outcomes = whole(batches, 0)
    assert list(outcomes) == ["low", "top"] == whole.trained
    assert not any(parameter.requires_grad for parameter in whole.levels["mid"].parameters())
    assert all(parameter.requires_grad for parameter in whole.levels["top"].parameters())
    whole.train()
    assert whole.levels["low"].training
    assert not whole.levels["mid"].training
    whole.loss(outcomes, 0).backward()
    assert whole.levels["mid"].weight.grad is None
    assert float(whole.levels["top"].weight.grad)


def test_the_loss_is_the_sum_of_terms_by_the_weights_of_their_levels(reads: Callable[..., Study]):
    levels = {"low": {"weight": 3.0}, "high": {"weight": {"from": 0.0, "to": 1.0, "shape": "jump", "at": 5}}}
    whole, batches = made(reads(levels))
    outcomes = whole(batches, 5)
    mean = {label: float(outcome.terms["mean"].detach()) for label, outcome in outcomes.items()}
    assert float(whole.loss(outcomes, 0).detach()) == pytest.approx(3 * mean["low"])
    assert float(whole.loss(outcomes, 999).detach()) == pytest.approx(3 * mean["low"] + mean["high"])


def test_a_level_that_counts_nothing_yet_is_not_computed_but_looked_at(reads: Callable[..., Study]):
    late = {"weight": {"from": 0.0, "to": 1.0, "shape": "jump", "at": 5}}
    whole, batches = made(reads({"low": {}, "mid": late, "high": {}}))
    one = Pass(whole, batches, 4)
    assert list(one.outcomes()) == ["low", "high"]
    assert "mid" in {label for label, _ in one.made}, "the level above reads its states"
    assert list(whole(batches, 5)) == list(Pass(whole, batches, 4, whole=True).outcomes()) == ["low", "mid", "high"]
    assert not made(reads({"low": late}))[0](batches, 4)


# --- initial weights, and sharing -------------------------------------------------------------------------------------


def weights(whole: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stack.unique_state(whole).items()}


def drawn(label: str) -> dict[str, Any]:
    return {"encoder": {"name": "latent_mlp", "width": 4, "hidden": 4}} | ({"reads": label} if label else {})


def test_initial_weights_depend_on_the_seed_and_the_path_alone(reads: Callable[..., Study]):
    levels = {"a": drawn("clock"), "b": drawn("clock")}
    whole = weights(made(reads(levels))[0])
    assert not torch.equal(whole["levels.a.encoder.layers.layers.0.weight"], whole["levels.b.encoder.layers.layers.0.weight"])
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = weights(made(reads({"z": drawn("clock"), "b": drawn("z"), "a": drawn("clock") | {"stride": 1, "weight": 5.0}}))[0])
    assert torch.equal(torch.get_rng_state(), before)
    same = [name for name in whole if name.startswith("levels.a.")]
    assert same
    assert all(torch.equal(whole[name], again[name]) for name in same)
    deeper = weights(made(reads({"a": drawn("clock"), "b": {"encoder": {"name": "latent_mlp", "hidden": 9}}}))[0])
    assert all(torch.equal(whole[name], deeper[name]) for name in same)
    other = weights(made(reads(levels, seed=1))[0])
    assert not torch.equal(whole[same[1]], other[same[1]])


def test_what_is_shared_is_one_instance_one_entry_and_one_parameter(reads: Callable[..., Study]):
    levels = {"a": drawn("clock"), "b": {"reads": "clock", "encoder": {"share": "a"}}}
    whole, batches = made(reads(levels))
    assert whole.levels["a"].encoder is whole.levels["b"].encoder
    assert sum(name.startswith("levels.b.encoder") for name in stack.unique_state(whole)) == 0
    assert len(list(whole.parameters())) == 2 + len(list(whole.levels["a"].encoder.parameters()))
    alone = made(reads({"a": drawn("clock")}))[0]
    assert torch.equal(
        weights(alone)["levels.a.encoder.layers.layers.0.weight"], weights(whole)["levels.a.encoder.layers.layers.0.weight"]
    )
    whole.loss(whole(batches, 0), 0).backward()
    state = weights(whole)
    fresh = made(reads(levels, seed=4))[0]
    stack.load_state(fresh, state, "x")
    assert all(torch.equal(tensor, state[name]) for name, tensor in weights(fresh).items())
    assert fresh.levels["a"].encoder is fresh.levels["b"].encoder


def test_a_prevention_cannot_be_shared(installed: Registry):
    level = {"name": "forecast", "encoder": {"name": "conv", "width": 8, "base": 4}, "predictor": "mlp", "energy": "l2"}
    raw = {
        "data": {"video": {"name": "moving_digits", "frames": 6, "size": 16, "digit_size": 8, "batch": 4}},
        "levels": {
            "a": {**level, "prevention": ["vicreg"]},
            "b": {**level, "reads": "frames", "prevention": [{"share": "a.prevention.0"}]},
        },
    }
    assert "cannot be shared" in refused(parse(raw, installed))["levels.b"]


def test_a_level_is_not_called_as_a_stream_of_its_source(reads: Callable[..., Study]):
    said = refused(reads({"clock": {}, "b": {"reads": "clock"}}))
    assert said == {"levels.clock": "source 'time' has a stream of that name; call the level otherwise"}


def test_what_reads_something_else_cannot_be_shared(reads: Callable[..., Study]):
    levels = {"a": drawn("clock"), "b": {"reads": "clock", "stride": 2, "encoder": {"share": "a"}}}
    said = refused(reads(levels))["levels.b.encoder"]
    assert said == "cannot be one with levels.a.encoder: that reads tokens [] of width 1, this tokens [2] of width 1"


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        ({"share": "a.encoder"}, "identity", "levels.a.encoder.inner"),
        ({"share": "b.encoder"}, {"name": "wrapped", "inner": {"share": "a.encoder"}}, "levels.b.encoder.inner"),
    ],
)
def test_a_component_cannot_be_a_part_of_itself(first: Any, second: Any, path: str, reads: Callable[..., Study]):
    levels = {"a": {"encoder": {"name": "wrapped", "inner": first}}, "b": {"reads": "clock", "encoder": second}}
    assert refused(reads(levels)) == {path: "levels.a.encoder cannot be a part of itself"}


def test_what_is_shared_and_cannot_be_made_is_said_once(reads: Callable[..., Study]):
    levels = {"a": {"encoder": "conv"}, "b": {"reads": "clock", "encoder": {"share": "a"}}}
    with pytest.raises(StudyMistake) as raised:
        stack.check(reads(levels))
    assert [problem.path for problem in raised.value.problems] == ["levels.a.encoder"]


def test_a_state_that_does_not_fit_is_refused_name_by_name(reads: Callable[..., Study]):
    whole = made(reads({"a": drawn("clock")}))[0]
    state = weights(whole)
    before = deepcopy(state)
    state["levels.a.more"] = state.pop("levels.a.weight")
    state["levels.a.encoder.layers.layers.0.bias"] = torch.zeros(99)
    with pytest.raises(Mistake) as raised:
        stack.load_state(whole, state, "here")
    assert str(raised.value) == (
        "here does not fit the study; missing: levels.a.weight; unknown: levels.a.more; "
        "of another shape: levels.a.encoder.layers.layers.0.bias"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(whole).items())


# --- keys of a step ---------------------------------------------------------------------------------------------------


def test_a_level_s_keys_depend_on_sample_and_epoch_and_its_step_key_on_the_step(reads: Callable[..., Study]):
    whole, batches = made(reads({"a": {}, "b": {}}, batch=4))

    def keys(label: str, step: int, rows: slice) -> tuple[list[int], int]:
        batch = {"time": {key: value[rows] for key, value in batches["time"].items()}}
        here = Pass(whole, batch, step).here(label)
        return here.key.word.tolist(), int(here.step_key.word)

    samples, step = keys("a", 5, slice(None))
    assert keys("a", 6, slice(1, 3))[0] == samples[1:3]
    assert len(set(samples) | set(keys("b", 5, slice(None))[0])) == 8
    assert keys("a", 6, slice(None))[1] != step
    assert keys("b", 5, slice(None))[1] != step


# --- nothing is allocated, and nothing leaks --------------------------------------------------------------------------


def test_checking_allocates_nothing(installed: Registry):
    path = Path(__file__).parents[2] / "studies" / "quickstart.yaml"
    read = study.read(str(path), ["levels.frame.encoder.width=1000000", "levels.frame.predictor.width=64"], installed)
    whole = stack.check(read)
    assert all(tensor.is_meta for tensor in [*whole.parameters(), *whole.buffers()])
    assert stack.described(whole)[0]["parameters"] > 10**8


@pytest.mark.parametrize(
    "sparse", [["levels.moment.crop=2"], ["levels.moment.window=1"], ["levels.moment.window=1", "data.video.batch=3"]]
)
def test_a_real_encoder_makes_the_same_of_some_frames_as_of_all(sparse: list[str], installed: Registry):
    path = Path(__file__).parents[2] / "studies" / "quickstart.yaml"
    whole, batches = made(study.read(str(path), ["levels.frame.frozen=true", "data.video.batch=2", *sparse], installed))
    once = Pass(whole, batches, step=1)
    once.outcomes()
    at = once.wanted["frame", "video"]
    assert len(at) < 24
    assert torch.equal(once.made["frame", "video"].tokens, whole.states("frame", "video", batches["video"]).tokens[:, at])


@pytest.mark.parametrize("changed", [23, 22, 13, 0])
def test_no_state_and_no_energy_sees_what_comes_later(changed: int, installed: Registry):
    """P28: change a frame of the quickstart, and everything before it stays as it was, bit for bit."""
    path = Path(__file__).parents[2] / "studies" / "quickstart.yaml"
    small = ["data.video.batch=2", "levels.frame.encoder={name: conv, width: 16, base: 4}", "levels.frame.prevention=[]"]
    whole, batches = made(study.read(str(path), [*small, "levels.moment.prevention=[]"], installed))
    whole.eval()
    other = {"video": batches["video"] | {"frames": batches["video"]["frames"].clone()}}
    other["video"]["frames"][:, changed] += 1
    for label in ("frame", "moment"):
        before, after = (whole.states(label, "video", batch["video"]) for batch in (batches, other))
        earlier = int((before.time[0] < changed).sum())
        assert torch.equal(before.tokens[:, :earlier], after.tokens[:, :earlier])
        assert not torch.equal(before.tokens[:, earlier], after.tokens[:, earlier])
    first, second = whole(batches, 0), whole(other, 0)
    for label in ("frame", "moment"):
        ticks = torch.tensor(whole.composer.spec(label, "video").ticks)[1:]
        assert torch.equal(first[label].energy[:, ticks < changed], second[label].energy[:, ticks < changed])
        assert not torch.equal(first[label].energy, second[label].energy)


@pytest.mark.parametrize("cut", [2, 3, 4])
def test_the_slow_states_of_a_clip_are_those_of_its_parts(cut: int, installed: Registry):
    """P30: cut the quickstart's clip where a window of `moment` ends, and both parts have the states of the whole."""
    path = Path(__file__).parents[2] / "studies" / "quickstart.yaml"
    small = ["data.video.batch=2", "levels.frame.encoder={name: conv, width: 16, base: 4}", "probes={}"]
    whole, batches = made(study.read(str(path), small, installed))
    states = whole.eval().states("moment", "video", batches["video"]).tokens
    found = []
    for first, end in ((0, 4 * cut), (4 * cut, 24)):
        part, _ = made(study.read(str(path), [*small, f"data.video.frames={end - first}"], installed))
        part.load_state_dict(whole.state_dict())
        found.append(part.eval().states("moment", "video", _within(batches["video"], first, end)).tokens)
    torch.testing.assert_close(torch.cat(found, dim=1), states)


def _within(batch: Batch, first: int, end: int) -> Batch:
    frames = batch["frames"].shape[1]
    return {name: value[:, first:end] if value.shape[1:2] == (frames,) else value for name, value in batch.items()}
