"""The text of a study: where it is found, what it extends, and what overrides change in it; plain data, nothing understood yet."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from hjepa.errors import Mistake, Problem, listed, nearest

LARGEST, DEEPEST, WORD = 100_000, 100, 63
"""Values in a study, one within the other, and bits of a whole number."""


def data_of(path: Path, overrides: Iterable[str], problems: list[Problem]) -> tuple[dict[str, Any], str]:
    """A study as plain data, and its text with those that it extends. Overrides that lead nowhere are noted."""
    raw, text = _with_bases(path, ())
    for override in _kept_together(overrides, problems):
        _override(raw, override, problems)
    return raw, text


def changed(raw: dict[str, Any], overrides: Iterable[str], within: tuple[str, ...], problems: list[Problem]) -> dict[str, Any]:
    """Plain data with overrides of the keys `within`, or below. Others are noted, and so are those that lead nowhere."""
    for override in _kept_together(overrides, problems):
        key = override.partition("=")[0]
        if any(f"{key}.".startswith(f"{name}.") for name in within):
            _override(raw, override, problems)
        else:
            problems.append(
                Problem(override.partition("=")[0], f"only {listed(within)} can be changed of what is trained already")
            )
    return raw


def shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that is written twice is an error, and so is a tag."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, f"a study has no tags; written: {event.tag!r}", event.start_mark)
        return super().compose_node(parent, index)  # type: ignore[no-any-return, no-untyped-call]

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, and not where values are made: there what `<<` merges stands beside what overrides it.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # type: ignore[no-untyped-call]
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is written twice", key_node.start_mark)
            seen.add(key)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # What overrides a merged key stands alone then: who merges this mapping in turn would get the other (PyYAML 6.0.4).
        super().flatten_mapping(node)
        node.value = list({str(key.value): (key, value) for key, value in node.value}.values())


# YAML 1.1 takes 1e-4 for a word; everybody who writes it means the number
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _yaml(text: str, where: str) -> Any:
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise Mistake(f"{where} is not valid YAML{place}: {getattr(error, 'problem', None) or error}") from None
    except (RecursionError, ValueError) as error:
        raise Mistake(f"{where} is not valid YAML: {error}") from None
    _bounded(found, where)
    return _apart(found)


def _bounded(tree: Any, where: str) -> None:
    """No more than `LARGEST` values, however often an alias repeats them, `DEEPEST` deep, and whole numbers of 64 bits."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), tree)]
    for _ in range(LARGEST):
        if not waiting:
            return
        path, value = waiting.pop()
        if len(path) > DEEPEST:
            break
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*path, key), item) for key, item in pairs]
        elif isinstance(value, int) and value.bit_length() > WORD:
            at = ".".join(str(part) for part in path)
            raise Mistake(f"{where}: {at}: a whole number has at most {WORD} bits; this one has {value.bit_length()}")
    raise Mistake(f"{where} holds more than {LARGEST} values, or is more than {DEEPEST} deep, or holds itself")


def _apart(tree: Any) -> Any:
    """What an alias repeats becomes a copy, so that an override changes it in one place."""
    if isinstance(tree, dict):
        return {key: _apart(value) for key, value in tree.items()}
    return [_apart(value) for value in tree] if isinstance(tree, list) else tree


def folders() -> list[Path]:
    """Where studies are looked for by name: here, then in the checkout that hjepa is installed from."""
    return [Path.cwd() / "studies", Path(__file__).resolve().parent.parent / "studies"]


def locate(reference: str, beside: Path | None = None) -> Path:
    """The file of a study: a path, or a name in one of `folders`."""
    direct = [Path(reference), *([beside / reference] if beside else [])]
    places = [*([beside] if beside else []), *folders()]
    named = [folder / name for folder in places for name in (reference, f"{reference}.yaml")]
    for path in (*direct, *named):
        if os.path.isfile(path):  # false, and no error, for what cannot be a path
            return path
    known = sorted({path.stem for folder in folders() if folder.is_dir() for path in folder.glob("*.yaml")})
    hint = f" (there are: {listed(known)})" if known else " (studies come with hjepa's source tree, in its folder studies/)"
    raise Mistake(f"no study {reference!r}{nearest(reference, known)}{hint}")


def _with_bases(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], str]:
    """The mapping of a file, merged onto those that it extends."""
    path = path.resolve()
    if path in seen:
        raise Mistake(f"{path}: `extends` leads back to itself ({' -> '.join(str(p.name) for p in (*seen, path))})")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"{path} cannot be read: {error}") from None
    raw = _yaml(text, str(path))
    if not isinstance(raw, dict):
        raise Mistake(f"{path}: a study is a mapping; written: {shown(raw)}")
    base = raw.pop("extends", None)
    if base is None:
        return raw, text
    if not isinstance(base, str):
        raise Mistake(f"{path}: extends: the name or path of a study is needed; written: {shown(base)}")
    try:
        found = locate(base, beside=path.parent)
    except Mistake as error:
        raise Mistake(f"{path}: extends: {error}") from None
    below, below_text = _with_bases(found, (*seen, path))
    return merged(below, raw), f"{text}\n# --- extends {base} ---\n{below_text}"


def merged(below: Any, above: Any) -> Any:
    """Mappings merge by key; a component of another name replaces the one below it. A bare name below is a component."""
    if isinstance(below, str) and isinstance(above, dict):
        below = {"name": below}
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    names = [_name_of(value) for value in (below, above)]
    if all(names) and names[0] != names[1]:
        return above
    return {**below, **{key: merged(below[key], value) if key in below else value for key, value in above.items()}}


def _name_of(value: dict[str, Any]) -> str | None:
    return value["name"] if isinstance(value.get("name"), str) else None


def _kept_together(overrides: Iterable[str], problems: list[Problem]) -> Iterator[str]:
    """The overrides. Those that a shell has split at their spaces are noted, each once, with the quotes that they need."""
    found: list[list[str]] = []
    for text in overrides:
        if "=" in text or not found:
            found.append([text])
        else:
            found[-1].append(text)
    for first, *rest in found:
        if not rest:
            yield first
            continue
        key, whole = first.partition("=")[0], shlex.quote(" ".join([first, *rest]))
        problems.append(Problem(key, f"{rest[0]!r} behind it is no key=value; quotes keep together what has spaces: {whole}"))


def _override(raw: dict[str, Any], text: str, problems: list[Problem]) -> None:
    """`levels.frame.encoder.width=128` into the mapping."""
    key, equals, written = text.partition("=")
    if not equals or not key:
        problems.append(Problem(text, "an override is written key=value, as in levels.frame.encoder.width=128"))
        return
    try:
        value = _yaml(written, f"the value of {key}")
    except Mistake as error:
        problems.append(Problem(key, str(error)))
        return
    parts = key.split(".")
    at: Any = raw
    for position, part in enumerate(parts[:-1]):
        below = _step_into(at, part)
        if below is None:
            problems.append(Problem(key, f"{'.'.join(parts[: position + 1])} holds no keys of its own"))
            return
        at = below
    if isinstance(at, list):
        if not _is_index(parts[-1], at):
            problems.append(Problem(key, f"there is no item {parts[-1]!r}: the list has {len(at)}, counted from 0"))
            return
        at[int(parts[-1])] = merged(at[int(parts[-1])], value)
    else:
        at[parts[-1]] = value


def _is_index(part: str, items: list[Any]) -> bool:
    return part.isdecimal() and int(part) < len(items)


def _step_into(at: Any, part: str) -> Any:
    """The mapping or list under `part`; a bare name becomes the component that it means. None where there is nothing to set."""
    if isinstance(at, list):
        if not _is_index(part, at):
            return None
        key: Any = int(part)
    else:
        key = part
        at.setdefault(key, {})
    if isinstance(at[key], str):
        at[key] = {"name": at[key]}
    if at[key] is None:
        at[key] = {}
    return at[key] if isinstance(at[key], dict | list) else None
