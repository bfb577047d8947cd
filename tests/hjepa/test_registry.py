"""P38 and P39: plugins come from anywhere, in any order, and what is broken in one of them is its own affair."""

from __future__ import annotations

import importlib.metadata as metadata
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hjepa import contracts, registry
from hjepa.contracts import KINDS
from hjepa.errors import Mistake
from hjepa.options import options_of
from hjepa.registry import ALLOW_LIST, Registry, load, static_options, unmet

REGISTER = """
from hjepa.hookspecs import hookimpl

@hookimpl
def register(components):
    {added}
"""

L7 = '''
class L7:
    """Mean absolute error to the seventh."""

    def __init__(self, spec, *, beta: float = 1.0, mean: "bool" = True, scale=3) -> None:
        self.beta = beta

    def __call__(self, prediction, target):
        return (prediction - target).abs().pow(7).mean(-1)
'''


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What plugins of a test have imported is forgotten after it."""
    monkeypatch.delenv(ALLOW_LIST, raising=False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("x_"):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Puts a little distribution on the path, as pip would: modules, and metadata with an entry point."""

    def put(distribution: str, module: str, code: str = "", added: str = "", point: str = "", **more: str) -> str:
        site = tmp_path / distribution
        info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[hjepa]\n{point or module} = {module}\n")
        (site / f"{module}.py").write_text(code or REGISTER.format(added=added))
        for name, text in more.items():
            (site / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(site))
        return module

    return put


def own(*names: str) -> list[metadata.EntryPoint]:
    """The entry points of distributions of a test, in the order in which they are named."""
    found = {point.name: point for point in metadata.entry_points(group=registry.GROUP)}
    return [found[name] for name in names]


# --- what works -------------------------------------------------------------------------------------------------------


def test_a_plugin_s_component_is_found_with_where_it_comes_from(install: Callable[..., str]):
    install("x-good", "x_good", added='components.add("energy", "l7", "x_good_l7:L7")', x_good_l7=L7)
    found = load()
    assert found.failures == []
    entry = found.find("energy", "l7")
    assert "x_good_l7" not in sys.modules
    assert (entry.plugin.distribution, entry.plugin.version, entry.plugin.name) == ("x-good", "1.5", "x_good")
    assert entry.file.endswith("x-good/x_good_l7.py")
    assert "x_good_l7" not in sys.modules
    assert entry.load().__name__ == "L7"


def test_loading_again_gives_the_same_and_doubles_nothing(install: Callable[..., str]):
    install("x-good", "x_good", added='components.add("energy", "l7", "x_good_l7:L7")', x_good_l7=L7)

    def told(found: Registry) -> list[tuple[str, str, str]]:
        return [(entry.kind, entry.name, str(entry)) for entry in found.entries()]

    once, again = load(), load()
    assert told(once) == told(again)
    assert [plugin.name for plugin in once.plugins] == [plugin.name for plugin in again.plugins]
    doubled = load(points=[*metadata.entry_points(group=registry.GROUP), *own("x_good")])
    assert told(doubled) == told(once)
    assert doubled.conflicts() == []


def test_an_object_can_be_a_plugin(install: Callable[..., str]):
    code = """
        from hjepa.hookspecs import hookimpl
        class Parts:
            @hookimpl
            def register(self, components):
                components.add("energy", "l7", "x_parts_l7:L7")
        parts = Parts()
    """
    install("x-parts", "x_parts", textwrap.dedent(code), point="x_parts", x_parts_l7=L7)
    (point,) = own("x_parts")
    value = metadata.EntryPoint(point.name, "x_parts:parts", registry.GROUP)
    assert [entry.name for entry in load(points=[value]).entries()] == ["l7"]


# --- what is broken ---------------------------------------------------------------------------------------------------

BROKEN = {
    "no such module": ("import x_nowhere_at_all", "ModuleNotFoundError"),
    "no such name": ("from hjepa.contracts import Nothing", "ImportError"),
    "leaves": ("raise SystemExit(3)", "SystemExit"),
    "does not parse": ("def register(:", "SyntaxError"),
    "interrupts": ("class Stop(KeyboardInterrupt): pass\nraise Stop('now')", "Stop"),
    "raises anything": ("raise BaseException('no')", "BaseException"),
    "has no hook": ("x = 1", "implements no hook"),
    "fails half way": (REGISTER.format(added='components.add("energy", "half", "a:B"); 1 / 0'), "ZeroDivisionError"),
    "leaves half way": (REGISTER.format(added='components.add("energy", "half", "a:B"); raise SystemExit'), "SystemExit"),
    "unknown kind": (REGISTER.format(added='components.add("enregy", "half", "a:B")'), "did you mean 'energy'"),
    "kind of no type": (REGISTER.format(added='components.add(7, "half", "a:B")'), "unknown kind 7"),
    "bad name": (REGISTER.format(added='components.add("energy", "Half Way", "a:B")'), "small letters"),
    "name of no type": (REGISTER.format(added='components.add("energy", None, "a:B")'), "small letters"),
    "no class": (REGISTER.format(added='components.add("energy", "half", "a.B")'), '"module:Class"'),
    "an object": (REGISTER.format(added='components.add("energy", "half", object)'), '"module:Class"'),
    "code": (REGISTER.format(added='components.add("energy", "half", "os:system(1)")'), '"module:Class"'),
    "twice": (
        REGISTER.format(added='components.add("energy", "l", "a:B"); components.add("energy", "l", "a:C")'),
        "added twice",
    ),
    "misspelled hook": (REGISTER.format(added="pass").replace("def register", "def registre"), "did you mean 'register'"),
    "argument unknown": (REGISTER.format(added="pass").replace("(components)", "(parts)"), "parts"),
    "no argument": (REGISTER.format(added="pass").replace("(components)", "(components, more)"), "more"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_one_broken_plugin_is_reported_and_leaves_all_others_working(how: str, install: Callable[..., str]):
    code, said = BROKEN[how]
    whole = [(entry.kind, entry.name) for entry in load().entries()]
    install("x-broken", "x_broken", code)
    install("x-zgood", "x_zgood", added='components.add("energy", "l7", "x_zgood_l7:L7")', x_zgood_l7=L7)
    found = load()
    (failure,) = found.failures
    assert (failure.name, failure.distribution, failure.version) == ("x_broken", "x-broken", "1.5")
    assert said in failure.error
    assert sorted([*whole, ("energy", "l7")]) == [(entry.kind, entry.name) for entry in found.entries()]
    found.call("step_done", pytest.fail, run=Path(), step=1)


def test_a_study_that_needs_what_failed_is_told_of_the_failure(install: Callable[..., str]):
    install("x-broken", "x_broken", "raise ImportError('no library z')")
    with pytest.raises(
        Mistake, match=r"unknown energy 'l7'.*plugin x_broken \(x-broken 1\.5\) failed: ImportError: no library z"
    ):
        load().find("energy", "l7")


def test_ctrl_c_while_plugins_load_is_the_person_s(install: Callable[..., str]):
    install("x-slow", "x_slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load()


def test_a_component_that_cannot_be_imported_is_named_with_its_plugin(install: Callable[..., str]):
    added = 'for name in ("gone", "exits", "none"): components.add("energy", name, f"x_late_{name}:L7")'
    install("x-late", "x_late", added=added, x_late_exits="raise SystemExit(1)", x_late_none="")
    found = load()
    for name, said in {"gone": "ModuleNotFoundError", "exits": "SystemExit", "none": "AttributeError"}.items():
        with pytest.raises(Mistake, match=rf"energy '{name}' of x-late 1\.5 \(plugin x_late\) cannot be imported .*{said}"):
            found.find("energy", name).load()


# --- two plugins and one name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("x_one", "x_two"), ("x_two", "x_one")])
def test_two_claims_are_an_error_that_names_both_whatever_the_order(order: tuple[str, str], install: Callable[..., str]):
    for module in order:
        install(
            module.replace("_", "-"), module, added=f'components.add("energy", "l7", "{module}_l7:L7")', **{f"{module}_l7": L7}
        )
    found = load(points=own(*order))
    (message,) = found.conflicts()
    first, second = message.find("x-one 1.5"), message.find("x-two 1.5")
    assert 0 < first < second
    assert "x_one_l7.py" in message
    assert "x_two_l7.py" in message
    with pytest.raises(Mistake) as raised:
        found.find("energy", "l7")
    assert str(raised.value) == message


def test_a_claim_on_a_shipped_name_is_no_different(install: Callable[..., str]):
    install("x-one", "x_one", added='components.add("energy", "l2", "x_one_l7:L7")', x_one_l7=L7)
    found = load()
    with pytest.raises(Mistake, match=r"hjepa_energy.l2\.py.* and x-one 1\.5"):
        found.find("energy", "l2")
    assert found.find("energy", "l1").plugin.distribution == "hjepa"


@pytest.mark.parametrize("order", [("x_one", "x_two"), ("x_two", "x_one")])
def test_an_intended_replacement_stands_alone(order: tuple[str, str], install: Callable[..., str]):
    install("x-one", "x_one", added='components.add("energy", "l7", "x_one_l7:L7")', x_one_l7=L7)
    install("x-two", "x_two", added='components.add("energy", "l7", "x_two_l7:L7", replaces="x-one")', x_two_l7=L7)
    found = load(points=own(*order))
    assert found.conflicts() == []
    assert found.find("energy", "l7").plugin.distribution == "x-two"


def test_replacing_each_other_or_oneself_is_an_error_and_not_nothing(install: Callable[..., str]):
    install("x-one", "x_one", added='components.add("energy", "l7", "x_one_l7:L7", replaces="x-two")', x_one_l7=L7)
    install("x-two", "x_two", added='components.add("energy", "l7", "x_two_l7:L7", replaces="x-one")', x_two_l7=L7)
    found = load(points=own("x_one", "x_two"))
    with pytest.raises(Mistake, match=r"x-one 1\.5.* and x-two 1\.5"):
        found.find("energy", "l7")
    assert len(found.conflicts()) == 1


def test_the_same_entry_point_name_in_two_distributions_is_no_conflict(install: Callable[..., str]):
    for module in ("x_one", "x_two"):
        added = f'components.add("energy", "{module}", "{module}_l7:L7")'
        install(module.replace("_", "-"), module, added=added, point="parts", **{f"{module}_l7": L7})
    points = [point for point in metadata.entry_points(group=registry.GROUP) if point.name == "parts"]
    found = load(points=points)
    assert found.failures == []
    assert found.names("energy") == ["x_one", "x_two"]


# --- choosing plugins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x_good", "x-good"])
def test_a_blocked_plugin_is_never_imported(name: str, install: Callable[..., str]):
    install("x-good", "x_good", added='components.add("energy", "l7", "x_good_l7:L7")', x_good_l7=L7)
    found = load(blocked=[name])
    assert "x_good" not in sys.modules
    assert "l7" not in found.names("energy")
    assert "l2" in found.names("energy")


def test_the_allow_list_leaves_all_others_unimported(install: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    for module in ("x_one", "x_two"):
        added = f'components.add("energy", "{module}", "{module}_l7:L7")'
        install(module.replace("_", "-"), module, added=added, **{f"{module}_l7": L7})
    monkeypatch.setenv(ALLOW_LIST, "x_one, hjepa_encoders")
    found = load()
    assert [plugin.name for plugin in found.plugins] == ["hjepa_encoders", "x_one"]
    assert "x_two" not in sys.modules
    monkeypatch.setenv(ALLOW_LIST, "x-two")
    assert [entry.name for entry in load().entries()] == ["x_two"]


def test_a_plugin_that_is_not_there_cannot_be_chosen(install: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Mistake, match="no plugin is called 'hjepa_enery', did you mean 'hjepa_energy'"):
        load(blocked=["hjepa_enery"])
    monkeypatch.setenv(ALLOW_LIST, "hjepa_dat")
    with pytest.raises(Mistake, match="no plugin is called 'hjepa_dat', did you mean 'hjepa_data'"):
        load()


# --- classes and their protocols --------------------------------------------------------------------------------------


def protocols() -> list[type]:
    return [protocol for kind in KINDS.values() for protocol in kind]


def methods_of(protocol: type) -> dict[str, Any]:
    return {name: method for name, method in vars(protocol).items() if callable(method) and not name.startswith("_")} | {
        name: vars(protocol)[name] for name in ("__call__", "__len__") if name in vars(protocol)
    }


@pytest.mark.parametrize("protocol", protocols(), ids=lambda protocol: protocol.__name__)
def test_a_class_with_the_methods_of_a_protocol_fits_it_and_without_one_of_them_does_not(protocol: type):
    methods = methods_of(protocol)
    optional = getattr(protocol, "optional", ())
    assert unmet(type("Whole", (), methods), protocol) == []
    for name in methods:
        lacking = unmet(type("Partial", (), {other: one for other, one in methods.items() if other != name}), protocol)
        assert lacking == ([] if name in optional else [f"it has no `{name}`"])


@pytest.mark.parametrize("protocol", protocols(), ids=lambda protocol: protocol.__name__)
def test_parameters_of_other_names_are_named(protocol: type):
    def other(self: Any, first: Any, second: Any) -> None:
        """Takes other things."""

    for name, method in methods_of(protocol).items():
        wanted = method.__code__.co_varnames[1 : method.__code__.co_argcount]
        lacking = unmet(type("Other", (), methods_of(protocol) | {name: other}), protocol)
        if not wanted:
            assert lacking == []
            continue
        (said,) = lacking
        assert f"`{name}(first, second)` does not take {', '.join(wanted)}" == said


def test_a_prevention_needs_one_of_its_methods():
    nothing = type("Nothing", (), {"bind": contracts.Prevention.bind})
    assert unmet(nothing, contracts.Prevention) == ["it has none of `targets`, `terms`"]


def test_forward_of_a_module_counts_as_its_call_and_what_modules_have_anyway_does_not():
    from torch import nn

    class Silent(nn.Module):
        pass

    class Deaf(nn.Module):
        def forward(self, x: object) -> None:
            """Takes something else."""

    assert unmet(Silent, contracts.Energy) == ["it has no `forward`"]
    assert unmet(Deaf, contracts.Energy) == ["`forward(x)` does not take prediction, target"]


def test_whatever_takes_keywords_fits_and_what_is_no_class_does_not():
    class Any_:
        def __call__(self, **everything: object) -> None:
            """Takes all."""

    assert unmet(Any_, contracts.Energy) == []
    assert unmet(lambda prediction, target: 0, contracts.Energy) == ["it is function, not a class"]


def test_a_class_that_does_not_fit_is_refused_when_it_is_first_used(install: Callable[..., str]):
    code = """
        class Bare:
            def __init__(self, spec): ...
            def __call__(self, states, z=None): ...
            def start(self, states, condition=None): ...
    """
    install("x-bare", "x_bare", added='components.add("predictor", "bare", "x_bare_code:Bare")', x_bare_code=code)
    entry = load().find("predictor", "bare")
    with pytest.raises(Mistake) as raised:
        entry.load()
    message = str(raised.value)
    assert "predictor 'bare' (x_bare_code:Bare, x-bare 1.5 (plugin x_bare)) is not a predictor" in message
    assert "`__call__(states, z)` does not take condition" in message or "context, query" in message


# --- options, told without importing ----------------------------------------------------------------------------------


def test_options_are_read_from_the_source(install: Callable[..., str]):
    install("x-good", "x_good", added='components.add("energy", "l7", "x_good_l7:L7")', x_good_l7=L7)
    told = static_options(load().find("energy", "l7"))
    assert told == {
        "beta": {"type": "float", "default": "1.0"},
        "mean": {"type": "'bool'", "default": "True"},
        "scale": {"type": None, "default": "3"},
    }
    assert "x_good_l7" not in sys.modules


def shipped() -> list[registry.Entry]:
    return [entry for entry in load().entries() if entry.plugin.distribution == "hjepa"]


@pytest.mark.parametrize("entry", shipped(), ids=lambda entry: f"{entry.kind} {entry.name}")
def test_what_is_listed_of_a_shipped_component_is_what_it_takes(entry: registry.Entry):
    told, real = static_options(entry), options_of(entry.load())
    assert list(told) == list(real)
    for name, option in real.items():
        required = told[name]["default"] is None
        assert required == (option.default is inspect.Parameter.empty)
        assert told[name]["type"]


# --- hooks of a run ---------------------------------------------------------------------------------------------------

HOOKS = """
from hjepa.hookspecs import hookimpl
told = []

@hookimpl
def {hook}({arguments}):
    told.append(({arguments}))
    {then}
"""

FACTS: dict[str, dict[str, Any]] = {
    "run_started": {"run": Path("r"), "study": {"seed": 0}, "step": 0},
    "step_done": {"run": Path("r"), "step": 1},
    "evaluated": {"run": Path("r"), "step": 1, "metrics": {"a": 1.0}},
    "checkpoint_saved": {"run": Path("r"), "step": 1, "checkpoint": Path("c")},
    "run_finished": {"run": Path("r"), "step": 1, "outcome": "done"},
}


@pytest.mark.parametrize("hook", FACTS)
def test_every_hook_is_told_what_happens_and_one_that_fails_is_named(hook: str, install: Callable[..., str]):
    """run_started, step_done, evaluated, checkpoint_saved, run_finished."""
    arguments = ", ".join(FACTS[hook])
    install("x-afails", "x_afails", HOOKS.format(hook=hook, arguments=arguments, then="raise OSError('disk full')"))
    install("x-listens", "x_listens", HOOKS.format(hook=hook, arguments=arguments, then="pass"))
    install("x-short", "x_short", HOOKS.format(hook=hook, arguments="step", then="pass"))
    said: list[str] = []
    load().call(hook, said.append, **FACTS[hook])
    assert sys.modules["x_listens"].told == [tuple(FACTS[hook].values())]
    assert sys.modules["x_short"].told == [FACTS[hook]["step"]]
    (message,) = said
    assert "x_afails" in message
    assert f"{hook} failed: OSError: disk full" in message


def test_the_register_hook_is_not_called_again_during_a_run(install: Callable[..., str]):
    install("x-good", "x_good", added='components.add("energy", "l7", "x_good_l7:L7")', x_good_l7=L7)
    found = load()
    before = len(list(found.entries()))
    found.call("step_done", pytest.fail, run=Path(), step=1)
    assert len(list(found.entries())) == before
