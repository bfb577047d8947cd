"""A study is read as it was meant, or everything that is wrong with it is said at once: path, written, allowed, nearest."""

from __future__ import annotations

import importlib.metadata as metadata
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from annotated_types import MinLen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa import compose, optimizers, stack, study
from hjepa.contracts import Build, Count, Energy, Fraction, SetPredictor, Spec, StepPredictor, by_name
from hjepa.errors import StudyMistake
from hjepa.hookspecs import hookimpl
from hjepa.parts import Component, Shared
from hjepa.registry import GROUP, Registry, load
from hjepa.schedules import Schedule
from hjepa.study import Study, parse

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))

# --- components with every kind of option -----------------------------------------------------------------------------


class Many:
    """A level (by its methods) with options of every type."""

    def __init__(
        self,
        spec: Spec,
        *,
        needed: Build[Energy],
        maybe: Build[Energy] | None = None,
        several: Sequence[Build[Energy]] = (),
        named: dict[str, Build[Energy]] = {},  # noqa: B006
        nested: Mapping[str, list[Build[Energy]]] = {},
        some: Annotated[list[Build[Energy]], MinLen(1)] = ("l1",),
        usual: Build[Energy] = by_name("l2"),
        set_predictor: Build[SetPredictor] | None = None,
        step_predictor: Build[StepPredictor] | None = None,
        count: Count = 3,
        share_of: Fraction = 0.5,
        widths: tuple[Count, ...] = (4, 2),
        mode: Literal["a", "b"] = "a",
        text: str | None = None,
        rate: Schedule = Schedule.of(0.5),
        free=None,
    ) -> None:
        self.options = {key: value for key, value in locals().items() if key not in ("self", "spec")}

    def encode(self, below): ...

    def __call__(self, here): ...


class WrongDefault(Many):
    """Its default breaks its own rule."""

    def __init__(self, spec: Spec, *, count: Count = 0) -> None: ...


class Unresolved(Many):
    """Its annotation is nothing at run time."""

    def __init__(self, spec: Spec, *, count: Nowhere = 0) -> None: ...  # noqa: F821


class Unreadable(Many):
    """Its annotation is no type that a study could give."""

    def __init__(self, spec: Spec, *, count: Tensor = 0) -> None: ...


class Greedy(Many):
    """Wants a key that is not its own."""

    def __init__(self, spec: Spec, *, stride: int = 0) -> None: ...


class Filler:
    """A predictor that fills masks."""

    def __call__(self, context, query, condition=None, z=None): ...


@hookimpl
def register(components) -> None:
    for name, found in {"many": Many, "wrong_default": WrongDefault, "unresolved": Unresolved}.items():
        components.add("level", name, f"{__name__}:{found.__name__}")
    components.add("level", "unreadable", f"{__name__}:Unreadable")
    components.add("level", "greedy", f"{__name__}:Greedy")
    components.add("predictor", "filler", f"{__name__}:Filler")


@pytest.fixture(scope="module")
def installed() -> Registry:
    return load(points=[*metadata.entry_points(group=GROUP), metadata.EntryPoint("toys", __name__, GROUP)])


LEVEL = {"name": "forecast", "encoder": "conv", "predictor": "causal", "energy": "l2"}
BASE: dict[str, Any] = {"data": {"video": {"name": "moving_digits"}}, "levels": {"frame": LEVEL}}


@pytest.fixture(scope="module")
def many(installed: Registry) -> Callable[..., Study]:
    """A study with a level of every kind of option."""

    def made(**options: Any) -> Study:
        raw = BASE | {"levels": {"frame": LEVEL, "all": {"name": "many", "needed": "l2"} | options}}
        return parse(raw, installed)

    return made


def told(read: Study) -> dict[str, str]:
    return {problem.path: problem.message for problem in read.problems}


# --- options ----------------------------------------------------------------------------------------------------------


def test_every_type_of_option_arrives_as_it_was_meant(many: Callable[..., Study]):
    read = many(
        maybe={"name": "smooth_l1", "beta": 2},
        several=["l1", {"name": "smooth_l1"}],
        named={"a": "l1", "b": "l2"},
        nested={"x": ["l1", "l2"], "y": []},
        widths=[8],
        mode="b",
        text="words",
        rate={"from": 1, "to": 0},
        free={"any": ["thing"]},
    )
    assert read.problems == []
    component = read.levels["all"].component
    options = component.options
    assert (options["needed"].name, options["needed"].path) == ("l2", "levels.all.needed")
    assert options["maybe"].options == {"beta": 2.0}
    assert [part.path for part in options["several"]] == ["levels.all.several.0", "levels.all.several.1"]
    assert {key: part.name for key, part in options["named"].items()} == {"a": "l1", "b": "l2"}
    assert [part.path for part in options["nested"]["x"]] == ["levels.all.nested.x.0", "levels.all.nested.x.1"]
    assert options["nested"]["y"] == []
    assert [part.name for part in options["some"]] == ["l1"]
    assert options["usual"].name == "l2"
    assert (options["count"], options["widths"], options["mode"], options["text"]) == (3, (8,), "b", "words")
    assert options["free"] == {"any": ["thing"]}
    assert isinstance(options["rate"], Schedule)
    assert {node.path.removeprefix("levels.all") for node in component.walk()} >= {"", ".maybe", ".nested.x.1", ".usual"}


def test_what_a_component_gets_are_factories_of_its_parts(many: Callable[..., Study]):
    read = many(several=["l1"], named={"a": "l2"})
    made = compose.Maker(read).make(read.levels["all"].component, Spec(width=4))
    assert made.options["maybe"] is None
    assert made.options["several"][0].name == "l1"
    assert type(made.options["named"]["a"](Spec(width=4))).__name__ == "L2"
    assert made.options["rate"](0) == 0.5


@pytest.mark.parametrize(
    ("options", "path", "said"),
    [
        ({"needed": None}, "needed", "name one energy"),
        ({"needed": 3}, "needed", "written: 3"),
        ({"needed": "l3"}, "needed.name", "did you mean 'l2' or 'l1'"),
        ({"needed": {"nam": "l2"}}, "needed.name", "written: {'nam': 'l2'}, did you mean 'nam'?"),
        ({"needed": {"name": "smooth_l1", "betta": 1}}, "needed.betta", "did you mean 'beta'"),
        ({"needed": {"name": "smooth_l1", "beta": 0}}, "needed.beta", "greater than 0; written: 0"),
        ({"needed": "conv"}, "needed.name", "unknown energy 'conv'"),
        ({"maybe": []}, "maybe", "name one energy"),
        ({"several": "l1"}, "several", "a list of components is needed; written: 'l1'"),
        ({"several": None}, "several", "a list of components is needed"),
        ({"several": {"a": "l1"}}, "several", "a list of components is needed"),
        ({"several": ["l1", {"name": "smooth_l1", "beta": -1}]}, "several.1.beta", "greater than 0"),
        ({"named": ["l1"]}, "named", "a mapping label -> component is needed"),
        ({"named": {"a": "l9"}}, "named.a.name", "unknown energy 'l9'"),
        ({"nested": {"x": "l1"}}, "nested.x", "a list of components is needed"),
        ({"nested": {"x": [["l1"]]}}, "nested.x.0", "name one energy"),
        ({"some": []}, "some", "at least 1 item"),
        ({"count": 0}, "count", "greater than or equal to 1; written: 0"),
        ({"count": 1.5}, "count", "written: 1.5"),
        ({"count": "many"}, "count", "valid integer"),
        ({"share_of": 1.01}, "share_of", "less than or equal to 1"),
        ({"share_of": math.nan}, "share_of", "written: nan"),
        ({"widths": [4, 0]}, "widths.1", "greater than or equal to 1"),
        ({"mode": "c"}, "mode", "'a' or 'b'; written: 'c'"),
        ({"text": 3}, "text", "valid string"),
        ({"rate": {"from": 1, "shpe": "jump"}}, "rate", "did you mean 'shape'"),
        ({"cuont": 3}, "cuont", "did you mean 'count'"),
        ({"step_predictor": "filler"}, "step_predictor.name", "StepPredictor is needed here, and predictor 'filler' is none"),
        ({"set_predictor": "causal"}, "set_predictor.name", "SetPredictor is needed here, and predictor 'causal' is none"),
    ],
)
def test_a_wrong_option_is_said_with_its_path(options: dict[str, Any], path: str, said: str, many: Callable[..., Study]):
    messages = told(many(**options))
    assert list(messages) == [f"levels.all.{path}"]
    assert said in messages[f"levels.all.{path}"]


def test_predictors_that_fit_are_taken(many: Callable[..., Study]):
    assert many(step_predictor="causal", set_predictor="filler").problems == []


def test_the_mismatch_of_predictors_says_what_is_missing(many: Callable[..., Study]):
    said = told(many(step_predictor="filler"))["levels.all.step_predictor.name"]
    assert "`__call__(context, query, condition, z)` does not take states" in said
    assert "it has no `start`" in said


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("wrong_default", "levels.all.count", "greater than or equal to 1; written: 0"),
        ("unresolved", "levels.all", "Nowhere"),
        ("unreadable", "levels.all", "cannot be used at run time"),
        ("greedy", "levels.all.stride", "the key belongs to hjepa"),
    ],
)
def test_a_component_that_is_itself_wrong_is_refused_before_training(name: str, path: str, said: str, installed: Registry):
    """P39: a wrong default, an annotation that means nothing, an option that the stack owns."""
    messages = told(parse(BASE | {"levels": {"all": {"name": name}}}, installed))
    assert list(messages) == [path]
    assert said in messages[path]
    assert "\n" not in messages[path]


# --- keys -------------------------------------------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said_at_once(installed: Registry):
    raw = {
        "seed": "x",
        "sede": 1,
        "data": {"video": {"name": "moving_digits", "frames": 0, "bacth": 3}},
        "levels": {
            "frame": LEVEL | {"stride": 0, "energy": "l3", "gradient": "back"},
            "Moment": LEVEL,
            "moment": {"name": "forecast", "encoder": "conv", "predictor": "casual"},
        },
        "train": {"steps": 0, "optimizer": {"name": "adamw", "lr": "fast"}, "stpes": 3, "keep": 1},
        "evaluate": {"samples": -1},
        "probes": {"where": {"name": "regression", "level": "frame"}, "what": {"name": "regresion"}},
    }
    read = parse(raw, installed)
    assert sorted(told(read)) == sorted(
        [
            "seed",
            "sede",
            "data.video.frames",
            "data.video.bacth",
            "levels.frame.stride",
            "levels.frame.energy.name",
            "levels.frame.gradient",
            "levels.Moment",
            "levels.moment.predictor.name",
            "levels.moment.energy",
            "train.steps",
            "train.optimizer.lr",
            "train.stpes",
            "train.keep",
            "evaluate.samples",
            "probes.where.target",
            "probes.what.name",
        ]
    )
    with pytest.raises(StudyMistake) as raised:
        stack.check(read)
    assert str(raised.value).startswith("study: 17 mistakes\n")
    assert (
        "levels.frame.energy.name: unknown energy 'l3', did you mean 'l2' or 'l1'? (installed: cosine, l1, l2, smooth_l1)"
        in str(raised.value)
    )


@pytest.mark.parametrize("key", ["seed", "data", "levels", "train", "evaluate", "probes"])
@pytest.mark.parametrize("value", [[], "text", 7.5, {7: 7}])
def test_no_value_of_a_top_key_breaks_reading(key: str, value: Any, installed: Registry):
    read = parse(BASE | {key: value}, installed)
    assert any(path == key or path.startswith(f"{key}.") for path in told(read))


def test_data_and_levels_are_needed_and_the_rest_is_not(installed: Registry):
    assert set(told(parse({}, installed))) == {"data", "levels"}
    assert parse(BASE, installed).problems == []
    assert parse(BASE | {"probes": None, "train": None, "evaluate": None}, installed).problems == []


def test_what_follows_from_a_mistake_is_not_said_as_another(installed: Registry):
    """A level that cannot be understood is no reason to call those that read it wrong."""
    upper = LEVEL | {"encoder": "latent_mlp"}
    levels = {
        "frame": LEVEL | {"energy": "l3"},
        "next": upper,
        "named": upper | {"reads": "frame"},
        "sharing": upper | {"reads": "next", "energy": {"share": "frame"}},
        "told": LEVEL | {"reads": "frames", "condition": "frame"},
    }
    probes = {"where": {"name": "regression", "level": "frame", "target": "position"}}
    with pytest.raises(StudyMistake) as raised:
        stack.check(parse(BASE | {"levels": levels, "probes": probes}, installed))
    assert [problem.path for problem in raised.value.problems] == ["levels.frame.energy.name"]
    broken = {"data": {"video": {"name": "moving_digits", "frames": 0}, "more": {"name": "moving_digits"}}}
    with pytest.raises(StudyMistake) as raised:
        stack.check(parse(broken | {"levels": levels | {"frame": LEVEL | {"data": "video"}}}, installed))
    assert [problem.path for problem in raised.value.problems] == ["data.video.frames"]


# --- sharing ----------------------------------------------------------------------------------------------------------


def sharing(installed: Registry, **second: Any) -> Study:
    first = LEVEL | {"prevention": ["vicreg", "sigreg"]}
    raw = BASE | {"levels": {"first": first, "second": LEVEL | {"reads": "frames"} | second}}
    return parse(raw, installed)


@pytest.mark.parametrize("written", ["first", "first.encoder", "levels.first.encoder"])
def test_a_share_leads_to_the_same_slot_or_to_where_it_says(written: str, installed: Registry):
    read = sharing(installed, encoder={"share": written})
    assert read.problems == []
    node = read.levels["second"].component.options["encoder"]
    assert isinstance(node, Shared)
    assert (node.path, node.target) == ("levels.second.encoder", "levels.first.encoder")


def test_a_share_of_one_item_of_a_list(installed: Registry):
    read = sharing(installed, prevention=[{"share": "first.prevention.1"}])
    assert read.problems == []
    assert read.levels["second"].component.options["prevention"][0].target == "levels.first.prevention.1"


@pytest.mark.parametrize(
    ("second", "path", "said"),
    [
        ({"encoder": {"share": "frist"}}, "levels.second.encoder.share", "no component at 'levels.frist.encoder'"),
        ({"encoder": {"share": "first.encodr"}}, "levels.second.encoder.share", "did you mean 'levels.first.encoder'"),
        ({"encoder": {"share": 3}}, "levels.second.encoder.share", "path of a component is needed; written: 3"),
        ({"encoder": {"share": "first", "width": 3}}, "levels.second.encoder.width", "unknown key"),
        ({"encoder": {"share": "first.energy"}}, "levels.second.encoder.share", "Encoder is needed here"),
        (
            {"encoder": {"share": "first"}, "energy": {"share": "second.encoder"}},
            "levels.second.energy.share",
            "no component at",
        ),
        ({"prevention": [{"share": "first.prevention.2"}]}, "levels.second.prevention.0.share", "no component at"),
        ({"encoder": {"share": "second"}}, "levels.second.encoder.share", "no component at"),
    ],
)
def test_a_share_that_leads_nowhere_or_to_something_else_is_refused(second: dict, path: str, said: str, installed: Registry):
    messages = told(sharing(installed, **second))
    assert list(messages) == [path]
    assert said in messages[path]


@pytest.mark.parametrize(
    ("key", "path"),
    [("levels", "levels.other.share"), ("data", "data.other.share"), ("probes", "probes.other.share")],
)
def test_a_whole_level_source_or_probe_cannot_be_shared(key: str, path: str, installed: Registry):
    raw = BASE | {key: {**BASE.get(key, {}), "other": {"share": "frame"}}}
    assert list(told(parse(raw, installed))) == [path]


def test_a_component_cannot_be_a_part_of_itself(installed: Registry):
    levels = {"all": {"name": "many", "needed": "l2", "several": [{"share": "levels.all.several.0"}]}}
    assert "no component at" in told(parse(BASE | {"levels": levels}, installed))["levels.all.several.0.share"]


# --- there and back ---------------------------------------------------------------------------------------------------


def again(read: Study, installed: Registry) -> Study:
    return parse(yaml.safe_load(yaml.safe_dump(read.resolved(), sort_keys=False)), installed)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_with_its_defaults_written_out_is_the_same_study(path: Path, installed: Registry):
    """P40: parse and dump are each other's inverse."""
    read = study.read(str(path), [], installed)
    assert read.problems + optimizers.problems(read) == []
    back = again(read, installed)
    assert back.problems == []
    assert back.resolved() == read.resolved()
    assert [node.path for plan in back.levels.values() for node in plan.component.walk()] == [
        node.path for plan in read.levels.values() for node in plan.component.walk()
    ]


SCHEDULED = st.one_of(
    st.floats(0, 10),
    st.fixed_dictionaries(
        {"from": st.floats(0, 10)}, optional={"to": st.floats(0, 10), "shape": st.sampled_from(["cosine", "jump"])}
    ),
    st.fixed_dictionaries({"from": st.floats(0, 10), "warmup": st.integers(0, 9), "at": st.integers(9, 20)}),
)


@settings(deadline=None, max_examples=30)
@given(rate=SCHEDULED, weight=SCHEDULED, seed=st.integers(0, 2**62), draw=st.randoms(use_true_random=False), data=st.data())
def test_random_valid_studies_come_back_as_they_were(
    rate: Any, weight: Any, seed: int, draw: random.Random, data: st.DataObject, installed: Registry, many: Callable[..., Study]
):
    energy = st.sampled_from(
        ["l1", "l2", {"name": "smooth_l1", "beta": 0.25}, {"share": "frame.energy"}, {"share": "levels.all.needed"}]
    )
    options = {
        "needed": "l2",
        "maybe": data.draw(st.none() | energy),
        "several": data.draw(st.lists(energy, max_size=3)),
        "nested": data.draw(st.dictionaries(st.sampled_from("xyz"), st.lists(energy, max_size=2), max_size=2)),
        "widths": data.draw(st.lists(st.integers(1, 9), max_size=3)),
        "rate": rate,
        "weight": weight,
        "free": data.draw(st.recursive(st.none() | st.integers(-9, 9) | st.text(max_size=3), st.lists, max_leaves=4)),
        "stride": data.draw(st.integers(1, 5)),
        "gradient": data.draw(st.sampled_from(["flow", "stop"])),
    }
    raw = BASE | {
        "seed": seed,
        "levels": {"frame": LEVEL, "all": {"name": "many"} | options},
        "train": {"steps": draw.randint(1, 99)},
    }
    read = parse(raw, installed)
    assert read.problems == []
    back = again(read, installed)
    assert back.problems == []
    assert back.resolved() == read.resolved()
    step = draw.randint(0, 99)
    assert back.levels["all"].keys.weight(step) == read.levels["all"].keys.weight(step)


def test_components_say_what_was_written_and_every_default(many: Callable[..., Study]):
    component = many(several=[{"name": "smooth_l1"}], maybe={"share": "frame.energy"}).levels["all"].component
    assert isinstance(component, Component)
    said = component.written()
    assert said["several"] == [{"name": "smooth_l1", "beta": 1.0}]
    assert said["maybe"] == {"share": "levels.frame.energy"}
    assert (said["usual"], said["count"], said["widths"], said["rate"]) == ({"name": "l2"}, 3, [4, 2], 0.5)


def test_five_different_mistakes_are_five_lines_of_one_message(installed: Registry, tmp_path: Path):
    """A wrong word, a wrong type, a key too many, one more in the training, and an optimizer that nobody has."""
    (tmp_path / "five.yaml").write_text(
        "extends: quickstart\n"
        "levels:\n"
        "  frame: {encoder: {width: wide}, enrgy: l2}\n"
        "  moment: {energy: l3}\n"
        "train: {optimizer: {name: adamv}, setps: 10}\n"
    )
    plan = study.read(str(tmp_path / "five.yaml"), (), installed)
    plan.problems += optimizers.problems(plan)
    paths = {
        "levels.frame.encoder.width",
        "levels.frame.enrgy",
        "levels.moment.energy.name",
        "train.optimizer.name",
        "train.setps",
    }
    assert {problem.path for problem in plan.problems} == paths
    with pytest.raises(StudyMistake) as caught:
        stack.check(plan)
    assert len(str(caught.value).splitlines()) == 1 + len(paths)
