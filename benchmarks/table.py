"""Results in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- from here on written by python -m benchmarks -->\n", "<!-- to here -->\n"


def table(result: Mapping[str, Any]) -> str:
    """What one benchmark found."""
    on, others = result["machine"], result["others_cores"]
    where = f"{on['cpu']}, {on['cores']} cores, {on['threads']} threads, {on['device']}, torch {on['torch']}, {result['date']}"
    state = f"**disturbed: others used {others} cores**" if result["disturbed"] else f"others used at most {others} cores"
    lines = [f"### {result['benchmark']}", "", f"{result['question']} `{result['command']}`", "", f"{where}; {state}.", ""]
    lines += ["| | hjepa | plain | times better |", "|---|---|---|---|"]
    for what, found in result["figures"].items():
        sides = [_shown(found.get(side), found["unit"]) for side in ("own", "plain")]
        lines.append(f"| {what} | {' | '.join(sides)} | {_shown(found.get('advantage'), '')} |")
    return "\n".join(lines) + "\n"


def _shown(found: Mapping[str, float] | None, unit: str) -> str:
    if found is None:
        return ""
    between = "" if found["low"] == found["high"] else f" ({found['low']:g} to {found['high']:g})"
    return f"{found['median']:g}{between} {unit}".rstrip()


def with_tables(readme: str, results: Path, names: Sequence[str]) -> str:
    """The README with the tables of the results that there are."""
    before, _, rest = readme.partition(BEGIN)
    files = [results / f"{name}.json" for name in names]
    tables = [table(json.loads(file.read_text())) for file in files if file.exists()]
    return "\n".join([before + BEGIN, *tables, END + rest.partition(END)[2]])
