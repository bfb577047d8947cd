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
from hjepa.contracts import Build, Count, Energy, Fraction, SetPredictor, Spec, StepPredictor
from hjepa.errors import Mistake, StudyMistake
from hjepa.hookspecs import hookimpl
from hjepa.registry import GROUP, Registry, load
from hjepa.schedules import Schedule
from hjepa.study import Component, Shared, Study, merged, parse

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
        usual: Build[Energy] = "l2",
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
        ({"needed": {"nam": "l2"}}, "needed.name", "written: {'nam': 'l2'}"),
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


# --- YAML -------------------------------------------------------------------------------------------------------------


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 0\nseed: 1", r"line 2, column 1\): the key 'seed' is written twice"),
        ("train: {steps: 1, clip: 2, steps: 3}", "the key 'steps' is written twice"),
        ("seed: !!python/object/apply:os.system [ls]", "no tags"),
        ("seed: !!int 3", "no tags; written: 'tag:yaml.org,2002:int'"),
        ("data: !mine {}", "no tags; written: '!mine'"),
        ("seed: !!binary aGk=", "no tags"),
        ("seed: [1", "not valid YAML"),
        ("seed: \x07", "not valid YAML"),
        ("? [1, 2]\n: 3", "not valid YAML"),
        ("--- 1\n--- 2", "not valid YAML"),
        ("seed: *nothing", "not valid YAML"),
        ("[1, 2]", "a study is a mapping; written"),
        ("", "a study is a mapping; written: None"),
        ("extends: [a]", "extends: the name or path of a study is needed"),
        ("extends: nowhere", "extends: no study 'nowhere'"),
        (f"seed: {10**30}", "seed: a whole number has at most 63 bits"),
        (f"seed: 0x{'f' * 9999}", "seed: a whole number has at most 63 bits; this one has 39996"),
        (f"seed: {'9' * 9999}", "not valid YAML"),
        ("data: &a [*a]", "holds itself"),
        ("data: &a {b: *a}", "holds itself"),
        ("seed: " + "[" * 150 + "]" * 150, "more than 100 deep"),
        ("a: &a [1,2,3,4,5,6,7,8,9]\n" + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi")),
         "holds more than 100000 values"),
        ("seed: " + "[" * 2000 + "]" * 2000, "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_no_study_at_all_is_one_message(text: str, said: str, tmp_path: Path, installed: Registry):
    with pytest.raises(Mistake, match=said) as raised:
        study.read(written(tmp_path, text), [], installed)
    assert "mine.yaml" in str(raised.value)


def test_what_cannot_be_read_is_one_message(tmp_path: Path, installed: Registry):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(Mistake, match=r"bytes\.yaml cannot be read"):
        study.read(str(tmp_path / "bytes.yaml"), [], installed)


def test_an_alias_stands_for_what_it_names(tmp_path: Path, installed: Registry):
    text = """
        data: {video: moving_digits}
        levels:
          frame: {name: forecast, encoder: conv, predictor: &p {name: causal, depth: 3}, energy: l2}
          moment: {name: forecast, encoder: latent_mlp, predictor: *p, energy: l2}
    """
    read = study.read(written(tmp_path, text), [], installed)
    assert read.problems == []
    assert read.levels["moment"].component.options["predictor"].options["depth"] == 3


# --- where studies are ------------------------------------------------------------------------------------------------


def test_a_study_is_found_as_a_path_here_and_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert study.locate("quickstart").parent == STUDIES[0].parent
    (tmp_path / "studies").mkdir()
    mine = written(tmp_path / "studies", "seed: 1", "quickstart.yaml")
    assert study.locate("quickstart") == Path(mine)
    written(tmp_path, "seed: 2", "quickstart")
    assert study.locate("quickstart") == Path("quickstart")
    assert study.locate("studies/quickstart.yaml") == Path("studies/quickstart.yaml")


@pytest.mark.parametrize("name", ["quickstrat", "x" * 5000, "a\0b", "", ".", "/", "studies"])
def test_a_study_that_is_not_there_is_a_mistake_with_the_nearest(name: str):
    with pytest.raises(Mistake, match="no study") as raised:
        study.locate(name)
    assert "quickstart" in str(raised.value)
    assert ("did you mean 'quickstart'" in str(raised.value)) == (name == "quickstrat")


# --- extends and merging ----------------------------------------------------------------------------------------------


def test_extends_builds_on_the_study_below_and_that_on_the_one_below_it(tmp_path: Path, installed: Registry):
    written(tmp_path, yaml.safe_dump(BASE | {"seed": 1, "train": {"steps": 5, "clip": 1.0}}), "ground.yaml")
    written(tmp_path, "extends: ground\nseed: 2\nlevels: {frame: {energy: l1}}", "middle.yaml")
    top = written(tmp_path, "extends: middle.yaml\ntrain: {steps: 7}\nlevels: {frame: {encoder: {width: 8}}}")
    read = study.read(top, [], installed)
    assert read.problems == []
    assert (read.name, read.seed, read.train.steps, read.train.clip) == ("mine", 2, 7, 1.0)
    component = read.levels["frame"].component
    assert component.options["energy"].name == "l1"
    assert component.options["encoder"].name == "conv"
    assert component.options["encoder"].options["width"] == 8
    assert "# --- extends middle.yaml ---" in read.text
    assert "seed: 1" in read.text


def test_a_study_of_the_same_name_here_can_extend_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Registry
):
    monkeypatch.chdir(tmp_path)
    top = written(tmp_path, "extends: quickstart\ntrain: {steps: 3}", "mine.yaml")
    assert study.read(top, [], installed).train.steps == 3


@pytest.mark.parametrize("chain", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_extends_in_a_circle_is_refused_with_the_way_around(chain: list[str], tmp_path: Path, installed: Registry):
    for name, below in zip(chain, [*chain[1:], chain[0]], strict=True):
        written(tmp_path, f"extends: {below}.yaml", f"{name}.yaml")
    with pytest.raises(Mistake, match="leads back to itself") as raised:
        study.read(str(tmp_path / "a.yaml"), [], installed)
    assert " -> ".join(f"{name}.yaml" for name in [*chain, "a"]) in str(raised.value)


@pytest.mark.parametrize(
    ("below", "above", "result"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": {"name": "n", "x": 1}}, {"a": {"name": "m"}}, {"a": {"name": "m"}}),
        ({"a": {"name": "n", "x": 1}}, {"a": {"name": "n", "y": 2}}, {"a": {"name": "n", "x": 1, "y": 2}}),
        ({"a": {"name": "n", "x": 1}}, {"a": {"y": 2}}, {"a": {"name": "n", "x": 1, "y": 2}}),
        ({"a": "n"}, {"a": {"x": 1}}, {"a": {"name": "n", "x": 1}}),
        ({"a": "n"}, {"a": {"name": "m", "x": 1}}, {"a": {"name": "m", "x": 1}}),
        ({"a": {"name": "n", "x": 1}}, {"a": "n"}, {"a": "n"}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"x": 1}}, {"a": {"x": 1}}),
        ({"a": {"from": 1.0, "to": 0.0}}, {"a": 0.5}, {"a": 0.5}),
    ],
)
def test_merging(below: Any, above: Any, result: Any):
    assert merged(below, above) == result


# --- overrides --------------------------------------------------------------------------------------------------------


def overridden(folder: Path, installed: Registry, *overrides: str) -> Study:
    raw = BASE | {"levels": {"frame": LEVEL | {"prevention": [{"name": "vicreg", "std": 1}, "sigreg"]}}}
    return study.read(written(folder, yaml.safe_dump(raw)), overrides, installed)


def test_overrides_reach_everything(tmp_path: Path, installed: Registry):
    read = overridden(
        tmp_path,
        installed,
        "seed=5",
        "train.optimizer.lr=1e-4",
        "train.optimizer.betas=[0.5, 0.6]",
        "levels.frame.encoder.width=128",
        "levels.frame.prevention.0.cov=7",
        "levels.frame.prevention.1.weight=0.5",
        "levels.frame.predictor={name: causal, depth: 1}",
        "probes.where={name: regression, level: frame, target: position}",
        "evaluate.samples=3",
        "data.video.frames=5",
    )
    assert read.problems == []
    assert (read.seed, read.evaluate.samples, read.train.optimizer.lr(0)) == (5, 3, 1e-4)
    assert read.train.optimizer.options == {"betas": [0.5, 0.6]}
    options = read.levels["frame"].component.options
    assert options["encoder"].options["width"] == 128
    assert (options["prevention"][0].options["std"], options["prevention"][0].options["cov"]) == (1, 7)
    assert (options["prevention"][1].name, options["prevention"][1].options["weight"]) == ("sigreg", 0.5)
    assert options["predictor"].options["depth"] == 1
    assert list(read.probes) == ["where"]


def test_the_last_override_counts_and_an_empty_list_leaves_nothing(tmp_path: Path, installed: Registry):
    read = overridden(tmp_path, installed, "seed=1", "levels.frame.prevention=[]", "seed=2")
    assert read.seed == 2
    assert read.levels["frame"].component.options["prevention"] == []


def test_a_name_alone_replaces_and_another_name_does_not_inherit_options(tmp_path: Path, installed: Registry):
    read = overridden(
        tmp_path, installed, "levels.frame.encoder.width=4", "levels.frame.encoder=identity", "levels.frame.prevention.0=ema"
    )
    options = read.levels["frame"].component.options
    assert read.problems == []
    assert (options["encoder"].name, options["prevention"][0].name) == ("identity", "ema")


@pytest.mark.parametrize(
    ("override", "path", "said"),
    [
        ("seed", "seed", "key=value"),
        ("=3", "=3", "key=value"),
        ("", "", "key=value"),
        ("seed.x=1", "seed", "valid integer; written: {'x': 1}"),
        (
            "levels.frame.prevention.0.std.x=1",
            "levels.frame.prevention.0.std.x",
            "levels.frame.prevention.0.std holds no keys of its own",
        ),
        ("levels.frame.prevention.2=ema", "levels.frame.prevention.2", "no item '2': the list has 2"),
        ("levels.frame.prevention.x=ema", "levels.frame.prevention.x", "no item 'x'"),
        ("levels.frame.prevention.-1=ema", "levels.frame.prevention.-1", "no item '-1'"),
        ("levels.frame.prevention.²=ema", "levels.frame.prevention.²", "no item '²'"),
        ("levels.frame.prevention.9.std=1", "levels.frame.prevention.9.std", "levels.frame.prevention.9 holds no keys"),
        ("seed=[1", "seed", "not valid YAML"),
        ("seed=!!int 3", "seed", "no tags"),
        ("level.frame.stride=3", "level", "did you mean 'levels'"),
        ("levels.frame.strid=3", "levels.frame.strid", "did you mean 'stride'"),
        ("levels.frme.stride=3", "levels.frme.name", "name one level"),
        ("levels..stride=3", "levels.", "small letters"),
        (".=3", "", "unknown key"),
    ],
)
def test_an_override_that_leads_nowhere_is_said_with_its_key(
    override: str, path: str, said: str, tmp_path: Path, installed: Registry
):
    messages = told(overridden(tmp_path, installed, override))
    assert list(messages) == [path]
    assert said in messages[path]


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
