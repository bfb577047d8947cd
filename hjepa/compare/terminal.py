"""A comparison in a terminal: as much of it as there is room for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from hjepa.compare import ACTED, NUMBERS, SEEDS, ranked
from hjepa.compare.cells import Cell
from hjepa.report import bare
from hjepa.verdicts import VERDICT_COLOURS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hjepa.compare import Comparison

LISTED = 40
"""Rows that are shown; the page and `--json` have all."""
WIDEST = 32
"""Characters in a cell."""


def table(told: Comparison, console: Console) -> None:
    """Prints a row a run, and how many became what."""
    order = ranked(told)
    listed = {title: [cells[place] for place in order[:LISTED]] for title, cells in _narrow(told, console.width).items()}
    console.print(_laid(listed, console.width))
    if len(order) > LISTED:
        console.print(f"the first {LISTED} of {len(order)}; the page and --json have all", style="dim", highlight=False)
    if told.repeated:
        console.print(f"\n{SEEDS}", style="dim", highlight=False)
        console.print(_laid(told.seeds(), console.width))
    if told.acted:
        console.print(f"\n{ACTED}", style="dim", highlight=False)
        plans = told.plans()
        while sum(map(_width, plans.items())) > console.width and list(plans)[-1] != "95 %":
            plans.popitem()  # the page and --json have all
        console.print(_laid(plans, console.width))
    console.print(told.sentence, style="bold", highlight=False)


def _laid(columns: dict[str, list[Cell]], width: int) -> Table:
    """A row a run; where that is too wide, and the other way is narrower, a column a run."""
    runs = list(zip(*columns.values(), strict=True))
    upright = sum(map(_width, columns.items()))
    aside = _width(("", [Cell(title) for title in columns])) + sum(_width(("", list(cells))) for cells in runs)
    if aside < upright > width:
        made = bare("", *(str(number) for number, _ in enumerate(runs, start=1)), words=("",))
        for title, cells in columns.items():
            made.add_row(title, *map(_coloured, cells))
        return made
    numeric = {title for title, cells in columns.items() if any(cell.value is not None and not cell.kind for cell in cells)}
    made = bare(*columns, words=[title for title in columns if title not in numeric])
    for run in runs:
        made.add_row(*map(_coloured, run))
    return made


def _coloured(cell: Cell) -> Text:
    return Text(_cut(cell.text), style=VERDICT_COLOURS[cell.kind] if cell.kind else "")


def _narrow(told: Comparison, width: int) -> dict[str, list[Cell]]:
    """The columns of a terminal: the numbers of a level in one, where there is room for them."""
    columns = told.columns()
    for level in told.levels:
        apart = [columns.pop(f"{level}: {title}") for title in NUMBERS.values()]
        title = f"{level}: {', '.join(NUMBERS.values())}"
        columns[title] = [
            Cell(" ".join(f"{cell.text:>7}" for cell in cells), cells[0].value) for cells in zip(*apart, strict=True)
        ]
    if {cell.text for cell in columns["state"]} == {"done"}:
        del columns["state"]
    while sum(map(_width, columns.items())) > width and ": " in list(columns)[-1]:
        columns.popitem()
    return columns


def _width(column: tuple[str, list[Cell]]) -> int:
    title, cells = column
    return 3 + max(len(title), *(len(_cut(cell.text)) for cell in cells))


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
