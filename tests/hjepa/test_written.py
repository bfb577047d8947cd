"""The text of a study: found by path or name, put together with what it extends, changed by overrides; or one clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hjepa.errors import Mistake
from hjepa.registry import Registry, load
from hjepa.study import Study, read
from hjepa.written import data_of, locate, merged

STUDIES = Path(__file__).parents[2] / "studies"
LEVEL = {"name": "forecast", "encoder": "conv", "predictor": "causal", "energy": "l2"}
BASE: dict[str, Any] = {"data": {"video": {"name": "moving_digits"}}, "levels": {"frame": LEVEL}}


@pytest.fixture(scope="module")
def installed() -> Registry:
    return load()


def told(plan: Study) -> dict[str, str]:
    return {problem.path: problem.message for problem in plan.problems}


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
        read(written(tmp_path, text), [], installed)
    assert "mine.yaml" in str(raised.value)


def test_what_cannot_be_read_is_one_message(tmp_path: Path, installed: Registry):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(Mistake, match=r"bytes\.yaml cannot be read"):
        read(str(tmp_path / "bytes.yaml"), [], installed)


def test_an_alias_stands_for_what_it_names(tmp_path: Path, installed: Registry):
    text = """
        data: {video: moving_digits}
        levels:
          frame: {name: forecast, encoder: conv, predictor: &p {name: causal, depth: 3}, energy: l2}
          moment: {name: forecast, encoder: latent_mlp, predictor: *p, energy: l2}
    """
    plan = read(written(tmp_path, text), [], installed)
    assert plan.problems == []
    assert plan.levels["moment"].component.options["predictor"].options["depth"] == 3
    plan = read(written(tmp_path, text), ["levels.frame.predictor.depth=1"], installed)
    depths = [plan.levels[label].component.options["predictor"].options["depth"] for label in ("frame", "moment")]
    assert depths == [1, 3]


# --- where studies are ------------------------------------------------------------------------------------------------


def test_a_study_is_found_as_a_path_here_and_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert locate("quickstart").parent == STUDIES
    (tmp_path / "studies").mkdir()
    mine = written(tmp_path / "studies", "seed: 1", "quickstart.yaml")
    assert locate("quickstart") == Path(mine)
    written(tmp_path, "seed: 2", "quickstart")
    assert locate("quickstart") == Path("quickstart")
    assert locate("studies/quickstart.yaml") == Path("studies/quickstart.yaml")


@pytest.mark.parametrize("name", ["quickstrat", "x" * 5000, "a\0b", "", ".", "/", "studies"])
def test_a_study_that_is_not_there_is_a_mistake_with_the_nearest(name: str):
    with pytest.raises(Mistake, match="no study") as raised:
        locate(name)
    assert "quickstart" in str(raised.value)
    assert ("did you mean 'quickstart'" in str(raised.value)) == (name == "quickstrat")


def test_without_a_source_tree_it_is_said_where_studies_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hjepa.written.folders", lambda: [tmp_path / "studies"])
    with pytest.raises(Mistake, match="studies come with hjepa's source tree"):
        locate("quickstart")


# --- extends and merging ----------------------------------------------------------------------------------------------


def test_extends_builds_on_the_study_below_and_that_on_the_one_below_it(tmp_path: Path, installed: Registry):
    written(tmp_path, yaml.safe_dump(BASE | {"seed": 1, "train": {"steps": 5, "clip": 1.0}}), "ground.yaml")
    written(tmp_path, "extends: ground\nseed: 2\nlevels: {frame: {energy: l1}}", "middle.yaml")
    top = written(tmp_path, "extends: middle.yaml\ntrain: {steps: 7}\nlevels: {frame: {encoder: {width: 8}}}")
    plan = read(top, [], installed)
    assert plan.problems == []
    assert (plan.name, plan.seed, plan.train.steps, plan.train.clip) == ("mine", 2, 7, 1.0)
    component = plan.levels["frame"].component
    assert component.options["energy"].name == "l1"
    assert component.options["encoder"].name == "conv"
    assert component.options["encoder"].options["width"] == 8
    assert "# --- extends middle.yaml ---" in plan.text
    assert "seed: 1" in plan.text


def test_a_study_of_the_same_name_here_can_extend_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: Registry
):
    monkeypatch.chdir(tmp_path)
    top = written(tmp_path, "extends: quickstart\ntrain: {steps: 3}", "mine.yaml")
    assert read(top, [], installed).train.steps == 3


@pytest.mark.parametrize("chain", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_extends_in_a_circle_is_refused_with_the_way_around(chain: list[str], tmp_path: Path, installed: Registry):
    for name, below in zip(chain, [*chain[1:], chain[0]], strict=True):
        written(tmp_path, f"extends: {below}.yaml", f"{name}.yaml")
    with pytest.raises(Mistake, match="leads back to itself") as raised:
        read(str(tmp_path / "a.yaml"), [], installed)
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
    return read(written(folder, yaml.safe_dump(raw)), overrides, installed)


def test_overrides_reach_everything(tmp_path: Path, installed: Registry):
    plan = overridden(
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
    assert plan.problems == []
    assert (plan.seed, plan.evaluate.samples, plan.train.optimizer.lr(0)) == (5, 3, 1e-4)
    assert plan.train.optimizer.options == {"betas": [0.5, 0.6]}
    options = plan.levels["frame"].component.options
    assert options["encoder"].options["width"] == 128
    assert (options["prevention"][0].options["std"], options["prevention"][0].options["cov"]) == (1, 7)
    assert (options["prevention"][1].name, options["prevention"][1].options["weight"]) == ("sigreg", 0.5)
    assert options["predictor"].options["depth"] == 1
    assert list(plan.probes) == ["where"]


def test_the_last_override_counts_and_an_empty_list_leaves_nothing(tmp_path: Path, installed: Registry):
    plan = overridden(tmp_path, installed, "seed=1", "levels.frame.prevention=[]", "seed=2")
    assert plan.seed == 2
    assert plan.levels["frame"].component.options["prevention"] == []


def test_a_name_alone_replaces_and_another_name_does_not_inherit_options(tmp_path: Path, installed: Registry):
    plan = overridden(
        tmp_path, installed, "levels.frame.encoder.width=4", "levels.frame.encoder=identity", "levels.frame.prevention.0=ema"
    )
    options = plan.levels["frame"].component.options
    assert plan.problems == []
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


def test_what_a_shell_has_split_is_said_once_with_its_quotes(tmp_path: Path, installed: Registry):
    split = ("seed=1", "levels.frame.encoder={name:", "conv,", "width:", "16}", "levels.frame.stride=2")
    plan = overridden(tmp_path, installed, *split)
    (message,) = told(plan).items()
    assert message[0] == "levels.frame.encoder"
    assert message[1].endswith("'levels.frame.encoder={name: conv, width: 16}'")


def test_a_mapping_can_build_on_another_of_its_file(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: {c: 2}}\nover: &over {<<: *base, a: 3}\nthird: {<<: *over, b: 4}\n"
    (tmp_path / "merged.yaml").write_text(text)
    raw, _ = data_of(tmp_path / "merged.yaml", (), [])
    assert raw == {"base": {"a": 1, "b": {"c": 2}}, "over": {"a": 3, "b": {"c": 2}}, "third": {"a": 3, "b": 4}}
