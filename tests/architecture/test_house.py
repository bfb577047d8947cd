"""The rules of the house, read off the source: what imports what, who names whom, and how much fits on a page."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hjepa import hookspecs
from hjepa.contracts import KINDS
from hjepa.keys import Evaluate, LevelKeys, SourceKeys, Train
from hjepa.options import options_of
from hjepa.registry import Entry, load

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "hjepa").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
FAMILIES = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").is_file())
SHIPPED = [entry for entry in load().entries() if entry.plugin.distribution == "hjepa"]

LATE = {
    "mlflow",
    "optuna",
    "xformers",
    "sklearn",
    "scipy",
    "matplotlib",
    "pandas",
    "av",
    "cv2",
    "mujoco",
    "gymnasium",
    "h5py",
    "torchdata",
}
"""Libraries that are imported where they are used: they cost seconds, or are not there."""
GUESTS = {
    "plugins/hjepa_control/gymnasium_ids.py": {"gymnasium"},
    "plugins/hjepa_control/gymnasium_rooms.py": {"gymnasium"},
}
"""Files that only the library itself imports, because somebody asked it for what is in them."""
TRAINED = ("encoder", "masking", "predictor", "energy", "prevention", "latent", "level", "macro_action", "attention")
"""Kinds whose components run at every step."""
WAITING = {"item", "tolist", "numpy", "cpu", "cuda"}
"""Methods of a tensor that wait for a device, or choose one."""
DRAWING = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "rand_like",
    "randn_like",
    "randint_like",
    "bernoulli",
    "multinomial",
    "manual_seed",
}
"""Functions of torch that draw from its global generator."""
WORDS = {"cosine", "linear", "gaussian", "auto", "random", "flow", "sum"}
"""Names of components that mean something else in the core: shapes of schedules, a layer, a sample, a device, a sampler, gradients, how
many frames are needed."""
LONG = {"hjepa/contracts.py": 522}
"""Files that are over 450 lines. No other may be, and these may only shrink."""


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Every module that is imported, and the names that are taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", [alias.name for alias in node.names]


def at_once(tree: ast.AST) -> ast.AST:
    """The tree without what does not run on import: bodies of functions, and what is for type checkers alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    return tree


def docstrings(tree: ast.AST) -> set[int]:
    """The constants that are said and never used."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}


def guests() -> set[str]:
    return {".".join(Path(path).relative_to("plugins").with_suffix("").parts) for path in GUESTS}


def every(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=named)


def components(*kinds: str) -> list[Entry]:
    return [entry for entry in SHIPPED if not kinds or entry.kind in kinds]


# --- who knows whom ---------------------------------------------------------------------------------------------------


def test_there_is_a_house():
    assert len(CORE) > 15
    assert len(FAMILIES) > 4
    assert len(SHIPPED) > 12


@every(CORE)
def test_the_core_imports_no_plugin(path: Path):
    assert not [module for module, _ in imports(parsed(path)) if module.split(".")[0] in (*FAMILIES, "plugins", "tests")]


@every(CORE)
def test_the_core_names_no_component(path: Path):
    """No `if name == "vicreg"`, and no name of a component in any other string that is used."""
    tree = parsed(path)
    said = docstrings(tree)
    names = {entry.name for entry in SHIPPED} - WORDS
    used = [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names and id(node) not in said
    ]
    assert used == []


@every(PLUGINS)
def test_a_family_imports_public_names_of_hjepa_and_its_own(path: Path):
    family = path.relative_to(ROOT / "plugins").parts[0]
    for module, names in imports(parsed(path)):
        head = module.split(".")[0]
        assert head == family or head not in (*FAMILIES, "plugins", "tests"), f"{family} imports {module}"
        if head == "hjepa":
            private = [name for name in (*module.split("."), *names) if name.startswith("_") and name != "__future__"]
            assert not private, f"{private} of {module} are not public"


@every([ROOT / "plugins" / family / "__init__.py" for family in FAMILIES])
def test_a_family_only_registers_and_imports_nothing_heavy(path: Path):
    tree = parsed(path)
    kinds = [type(node).__name__ for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom | ast.If | ast.Expr)]
    assert kinds == ["FunctionDef"]
    heads = {module.split(".")[0] for module, _ in imports(at_once(tree))}
    assert heads <= {"__future__", "typing", "hjepa"}


def test_every_family_has_its_entry_point():
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["hjepa"]
    assert points == {family: family for family in FAMILIES}
    assert sorted({entry.plugin.name for entry in SHIPPED}) == FAMILIES


def test_one_component_a_file():
    files = Counter(entry.target.split(":")[0] for entry in SHIPPED)
    assert {file: count for file, count in files.items() if count > 1} == {}
    for entry in SHIPPED:
        assert entry.target.split(":")[0].split(".")[0] == entry.plugin.name


def test_every_file_of_a_family_is_a_component_or_is_used_by_one():
    targets = {entry.target.split(":")[0] for entry in SHIPPED}
    used = {module for path in PLUGINS for module, _ in imports(parsed(path))}
    modules = {
        ".".join(path.relative_to(ROOT / "plugins").with_suffix("").parts) for path in PLUGINS if path.stem != "__init__"
    }
    assert modules - targets - used - guests() == set()


# --- what costs something ---------------------------------------------------------------------------------------------


@every([*CORE, *PLUGINS])
def test_heavy_libraries_are_imported_where_they_are_used(path: Path):
    heads = {module.split(".")[0] for module, _ in imports(at_once(parsed(path)))}
    assert not (heads & LATE) - GUESTS.get(named(path), set())


def test_guests_are_imported_by_nobody():
    modules = guests()
    assert not [named(path) for path in (*CORE, *PLUGINS) if modules & {module for module, _ in imports(parsed(path))}]


@pytest.mark.parametrize("name", ["__init__", "acting", "cli", "contracts", "errors", "hookspecs", "registry"])
def test_what_a_listing_needs_imports_no_torch(name: str):
    heads = {module.split(".")[0] for module, _ in imports(at_once(parsed(ROOT / "hjepa" / f"{name}.py")))}
    assert not heads & {"torch", "numpy", "pydantic", "yaml"}


def test_at_most_one_file_knows_xformers():
    users = [
        named(path)
        for path in (*CORE, *PLUGINS)
        if any(module.split(".")[0] == "xformers" for module, _ in imports(parsed(path)))
    ]
    assert len(users) <= 1


def source(entry: Entry) -> ast.Module:
    return parsed(Path(entry.file))


@pytest.mark.parametrize("entry", components(*TRAINED), ids=lambda entry: f"{entry.kind} {entry.name}")
def test_what_runs_at_every_step_waits_for_no_device_and_chooses_none(entry: Entry):
    calls = [node.func for node in ast.walk(source(entry)) if isinstance(node, ast.Call)]
    waiting = [
        f"{named(Path(entry.file))}:{call.lineno} .{call.attr}()"
        for call in calls
        if isinstance(call, ast.Attribute) and call.attr in WAITING
    ]
    assert not waiting
    assert not [ast.unparse(call) for call in calls if ast.unparse(call) in ("torch.device", "torch.cuda.current_device")]


@every(PLUGINS)
def test_plugins_draw_by_key_and_not_from_the_global_generator(path: Path):
    calls = [node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    drawn = [ast.unparse(call) for call in calls if isinstance(call, ast.Attribute) and call.attr in DRAWING]
    drawn += [ast.unparse(call) for call in calls if ast.unparse(call).startswith(("np.random", "numpy.random", "random."))]
    assert not drawn


# --- what is explained ------------------------------------------------------------------------------------------------


def hooks() -> list[str]:
    return [name for name, hook in vars(hookspecs).items() if hasattr(hook, f"{hookspecs.PROJECT}_spec")]


@pytest.mark.parametrize("hook", hooks())
def test_every_hook_is_explained_and_tested(hook: str):
    assert (getattr(hookspecs, hook).__doc__ or "").strip()
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    assert any(f'"{hook}"' in path.read_text() or f"def {hook}(" in path.read_text() for path in tests)


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: f"{entry.kind} {entry.name}")
def test_every_component_explains_itself_and_each_of_its_options(entry: Entry):
    found = entry.load()
    said = (found.__doc__ or "").strip()
    assert said
    assert (sys.modules[found.__module__].__doc__ or "").strip()
    assert not [
        option
        for option in options_of(found)
        if option not in said.replace("`", " ").replace(",", " ").replace(":", " ").split()
    ]


@pytest.mark.parametrize("protocol", [one for kind in KINDS.values() for one in kind], ids=lambda one: one.__name__)
def test_every_protocol_is_explained(protocol: type):
    assert (protocol.__doc__ or "").strip()


@pytest.mark.parametrize("keys", [SourceKeys, LevelKeys, Train, Evaluate], ids=lambda keys: keys.__name__)
def test_every_key_of_the_framework_is_explained(keys: type):
    assert not [name for name, field in keys.model_fields.items() if not field.description]


@every([*CORE, *PLUGINS])
def test_every_file_says_what_it_is_and_fits_on_few_pages(path: Path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= LONG.get(named(path), 450)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and len(tree.body) > 1]
    assert "from __future__ import annotations" in text or not functions
    assert not [node.name for node in functions if node.end_lineno - node.lineno > 75]
