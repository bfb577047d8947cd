"""P40: a mutated study is read, or refused by one message that names what was mutated; never a traceback, a hang or a guess.

HJEPA_MUTATIONS says how many mutations are tried (default 200).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

from hjepa import cli, optimizers, registry, study

COUNT = int(os.environ.get("HJEPA_MUTATIONS", "200"))
STUDIES = Path(__file__).parents[2] / "studies"
PATIENCE = 20.0
"""Seconds after which a check counts as hanging, on a busy machine."""

WRONG = [
    None, True, False, "", "text", "l2", "frame", "levels.frame", "::", "nein/../x", "x" * 300, "ключ", "\u2028", "{from: 1}",
    -1, 0, 1, 2, 3, 7, 10**6, 10**9, 10**18, 10**30, -(10**30), 0.5, -0.5, 1e308, 1e-320, math.nan, math.inf, -math.inf,
    [], {}, [1], [[]], [None], ["l2"], ["frame", "frame"], [{}], {"a": 1}, {"name": "l2"}, {"name": 1}, {"share": "frame"},
    {"share": "levels.frame.encoder"}, {"share": None}, {"from": 1}, {"from": 1.0, "to": 0.0, "at": 10**30}, {"from": math.nan},
    {"name": {"name": "l2"}}, {"name": "l2", "share": "frame"},
]  # fmt: skip

ADDED = ["crop", "stride", "window", "weights", "condition", "reads", "every", "transforms", "share", "name", 5, None]

FILES = """
seed: 3
data:
  stored: {name: arrays, path: PATH, main: frames, batch: 4}
  moving: {name: moving_digits, frames: 16, size: 16, digit_size: 8, batch: 8, every: 2}
levels:
  frame:
    name: forecast
    data: stored
    encoder: {name: conv, width: 16, base: 4, stages: 2}
    predictor: {name: causal, depth: 1, heads: 2}
    energy: {name: smooth_l1, beta: 0.5}
    prevention: [{name: ema, momentum: {from: 0.9, to: 1.0}}, {name: vicreg, projector: [16, 8]}]
    condition: sense
    rollout: 2
    context: 2
    weight: {from: 0.0, to: 1.0, warmup: 3}
  pair:
    name: forecast
    reads: frame
    stride: 2
    window: 3
    crop: 3
    gradient: stop
    encoder: {name: latent_mlp, width: 8}
    predictor: causal
    energy: cosine
    prevention: [stop_gradient, sigreg]
  other:
    name: forecast
    data: moving
    reads: frames
    frozen: true
    encoder: conv
    predictor: causal
    energy: l1
  same:
    name: forecast
    reads: pair
    encoder: identity
    predictor: {name: causal, dropout: 0.1}
    energy: {share: pair}
train:
  steps: 20
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
  groups: {"levels.frame.*": {lr: {from: 0.1, to: 0.0}, weight_decay: 0.1}}
  clip: 1.0
evaluate: {samples: 16}
probes:
  where: {name: regression, level: frame, target: sense, ridge: 0.1}
"""


@dataclass(frozen=True)
class Mutation:
    """A study with one thing in it changed."""

    what: str
    paths: list[tuple[Any, ...]]
    text: str
    """The study, as a person would have written it."""


def apart(tree: Any) -> Any:
    """The same without aliases: a value that is moved into itself would have no end."""
    if isinstance(tree, dict):
        return {key: apart(item) for key, item in tree.items()}
    return [apart(item) for item in tree] if isinstance(tree, list) else tree


@pytest.fixture(scope="module")
def installed() -> registry.Registry:
    return registry.load()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def bases(installed: registry.Registry, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The shipped studies and one that uses every key; each as written, and with every default."""
    folder = tmp_path_factory.mktemp("stored")
    np.save(folder / "frames.npy", np.zeros((20, 9, 8, 8), np.uint8))
    np.save(folder / "sense.npy", np.zeros((20, 9, 3), np.float32))
    np.save(folder / "actions.npy", np.zeros((20, 8, 2), np.float32))
    written = [apart(yaml.safe_load(path.read_text())) for path in sorted(STUDIES.glob("*.yaml"))]
    for source in (source for raw in written for source in raw.get("data", {}).values() if "path" in source):
        source["path"] = str(folder)
        Image.new("L", (8, 8)).save(folder / "image.png")
    with h5py.File(folder / "walks.h5", "w") as walks:
        walks.update({"frames": np.zeros((20, 33, 3, 48, 48), np.uint8), "actions": np.zeros((20, 32, 2), np.float32)})
        walks.update({"state": np.zeros((20, 33, 4), np.float32), "achieved": np.zeros((20, 33, 2), np.float32)})
    for source in (source for raw in written for source in raw.get("data", {}).values() if "file" in source):
        source["file"] = str(folder / "walks.h5")
    for choices in (
        node["choice"] for raw in written for node in raw.get("search", {}).get("space", {}).values() if "choice" in node
    ):
        for label in list(choices)[2:]:  # every choice is composed at each check: two are as good as thirty
            del choices[label]
    written.append(yaml.safe_load(FILES.replace("PATH", str(folder))))
    whole = [raw for raw in written if "extends" not in raw]
    return [*written, *(study.parse(raw, installed).resolved() for raw in whole)]


# --- mutating ---------------------------------------------------------------------------------------------------------


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything below the top."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def flow(value: Any, twice: tuple[Any, ...] | None = None) -> str:
    """YAML on one line, with the key at `twice` written two times."""
    if isinstance(value, dict):
        pairs = []
        for key, item in value.items():
            deeper = twice[1:] if twice and twice[0] == key and len(twice) > 1 else None
            pairs += [f"{scalar(key)}: {flow(item, deeper)}"] * (2 if twice == (key,) else 1)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        deeper = [twice[1:] if twice and twice[0] == number and len(twice) > 1 else None for number in range(len(value))]
        return "[" + ", ".join(flow(item, below) for item, below in zip(value, deeper, strict=True)) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    special = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}
    return special.get(str(value)) or (f"{value:.17e}" if isinstance(value, float) else json.dumps(value))


def mutated(base: dict[str, Any], draw: random.Random) -> Mutation:
    """One random change: a key renamed, removed, doubled, added or moved, or a value that is something else."""
    tree = copy.deepcopy(base)
    path = draw.choice(list(places(tree)))
    above, key = at(tree, path[:-1]), path[-1]
    what = draw.choice(["replace", "replace", "rename", "remove", "double", "add", "swap", "shuffle", "name"])
    if what == "rename" and isinstance(above, dict):
        new = misspelled(str(key), draw)
        items = [(new if name == key else name, value) for name, value in above.items()]
        above.clear()
        above.update(items)
        path = (*path[:-1], new)
    elif what == "remove" and path != ("extends",):  # without its base it would be another study
        del above[key]
    elif what == "double" and isinstance(above, dict):
        return Mutation(what, [path], flow(tree, twice=path))
    elif what == "add" and isinstance(above, dict):
        new = draw.choice(ADDED)
        above[new] = draw.choice(WRONG)
        path = (*path[:-1], new)
    elif what == "swap":
        other = draw.choice([place for place in places(tree) if place[: len(path)] != path and path[: len(place)] != place])
        above[key], at(tree, other[:-1])[other[-1]] = at(tree, other), above[key]
        return Mutation(what, [path, other], flow(tree))
    elif what == "shuffle" and isinstance(above, dict):
        items = list(above.items())
        draw.shuffle(items)
        above.clear()
        above.update(items)
        path = path[:-1]
    elif what == "name" and isinstance(above[key], str):
        above[key] = misspelled(above[key], draw)
    else:
        above[key] = draw.choice(WRONG)
        what = f"replace by {above[key]!r:.80}"
    return Mutation(what, [path], flow(tree))


def misspelled(word: str, draw: random.Random) -> str:
    place = draw.randrange(len(word) + 1)
    shorter = word[: place - 1] + word[place:] if len(word) > 1 else "xx"
    return draw.choice([word[:place] + "x" + word[place:], shorter, word.upper()])


# --- what comes of it -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def called(*arguments: str) -> Iterator[io.StringIO]:
    before, sys.argv = sys.argv, ["hjepa", *arguments]
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            yield said
    finally:
        sys.argv = before


def checked(text: str, folder: Path) -> tuple[Any, str]:
    """Exit code and message of `hjepa check`."""
    (folder / "mutated.yaml").write_text(text, encoding="utf-8")
    with called("check", str(folder / "mutated.yaml")) as said, pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0, said.getvalue()


def names(message: str, mutation: Mutation) -> bool:
    """Whether a message is about what was mutated: the same level, source or probe, a path above or below, or its word."""
    told = [line.strip().split(": ")[0] for line in message.splitlines() if ": " in line]
    for changed in mutation.paths:
        dotted = ".".join(str(part) for part in changed)
        if len(changed) > 1 and f"{changed[0]}.{changed[1]}" in message:
            return True
        if any(f"{path}.".startswith(f"{dotted}.") or f"{dotted}.".startswith(f"{path}.") for path in told):
            return True
        if not changed or re.search(rf"(?<!\w){re.escape(str(changed[-1]))}(?!\w)", message):
            return True
    return False


LABELLED = [("data",), ("levels",), ("probes",), ("train", "groups")]
"""Mappings whose keys are a person's own."""


def test_no_unknown_key_is_ignored(bases: list[dict[str, Any]], installed: registry.Registry) -> None:
    """Every key of a study with every default, misspelled one after the other."""
    whole = bases[-1]
    keys = [path for path in places(whole) if isinstance(path[-1], str) and path[:-1] not in LABELLED]
    assert len(keys) > 100
    for path in keys:
        tree = copy.deepcopy(whole)
        above = at(tree, path[:-1])
        above[f"{path[-1]}z"] = above.pop(path[-1])
        read = study.parse(tree, installed)
        told = [str(problem) for problem in read.problems + (optimizers.problems(read) if path[0] == "train" else [])]
        dotted, key = ".".join(map(str, path[:-1])), f"{path[-1]}z"
        about = [line for line in told if line.startswith(f"{dotted}.{key}: ".lstrip(".")) or repr(key) in line]
        assert about, f"{dotted}.{key}: {told}"


def test_what_is_mutated_is_valid_before(bases: list[dict[str, Any]], tmp_path: Path) -> None:
    for base in bases:
        assert checked(flow(base), tmp_path)[0] == 0


@pytest.mark.parametrize("part", range(4))
def test_a_mutated_study_is_read_or_refused_by_one_message_that_names_the_mutation(
    part: int, bases: list[dict[str, Any]], installed: registry.Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_plugins", lambda blocked: installed)
    wrong = []
    for number in range(part, COUNT, 4):
        draw = random.Random(number)
        mutation = mutated(draw.choices(bases, [len(list(places(base))) for base in bases])[0], draw)
        begun = time.monotonic()
        try:
            code, message = checked(mutation.text, tmp_path)
        except Exception as error:
            code, message = None, f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - begun
        good = code == 0 or (code == 2 and names(message, mutation) and "Traceback" not in message)
        if not good or seconds > PATIENCE:
            wrong.append(f"{number}: {mutation.what} at {mutation.paths}: exit {code} in {seconds:.1f} s\n{message}")
    assert not wrong, f"{len(wrong)} of {COUNT}\n" + "\n".join(wrong)
