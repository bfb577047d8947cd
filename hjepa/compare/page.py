"""A comparison as one HTML file that needs nothing else: the verdicts first, then curves that know their runs, then the table."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from hjepa.compare import ACTED, SEEDS, ranked
from hjepa.verdicts import VERDICT_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hjepa.compare import Comparison
    from hjepa.compare.cells import Cell

FEW = 16
"""Up to so many runs the table comes before the curves."""

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #2b2b2b; background: #fff;
       margin: 0 auto; max-width: 1500px; padding: 28px 36px 60px; }
h1 { font-size: 26px; font-weight: 650; margin: 0 0 2px; }
h2 { font-size: 17px; font-weight: 600; margin: 38px 0 8px; }
.lead { font-size: 19px; margin: 0 0 14px; }
.faint { color: #767676; font-size: 13.5px; }
a { color: #1F5FA8; }
.bar { display: flex; height: 26px; border-radius: 6px; overflow: hidden; gap: 2px; margin: 0 0 10px; }
.bar i { min-width: 4px; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; }
.chip { border: 1.5px solid; border-radius: 999px; padding: 2px 12px; background: none; font: inherit; cursor: pointer; }
.chip b { font-weight: 650; }
.chip.off { opacity: .35; text-decoration: line-through; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px; border-bottom: 1px solid #ececec; white-space: nowrap; }
th { color: #666; font-weight: 500; position: sticky; top: 0; background: #fff; }
#runs th { cursor: pointer; user-select: none; }
th[data-up]::after { content: " \\2191"; } th[data-down]::after { content: " \\2193"; }
td.number { text-align: right; } th.number { text-align: right; }
td:first-child { font-weight: 600; }
tr.hot td { background: #f3f6fa; }
.verdict { border-radius: 5px; padding: 1px 8px; color: #fff; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, "DejaVu Sans", sans-serif !important; }
svg.dim g[id^="run-"] { opacity: .1; } svg.dim g[id^="run-"].hot { opacity: 1; }
svg g[id^="run-"].hot path { stroke-width: 3px; }
#tip { position: fixed; pointer-events: none; background: #2b2b2b; color: #fff; border-radius: 5px; padding: 4px 9px;
       font-size: 13px; display: none; z-index: 9; max-width: 420px; }
.found { display: grid; grid-template-columns: repeat(auto-fit, minmax(560px, 1fr)); column-gap: 40px; align-items: start; }
"""

SCRIPT = """
const rows = new Map([...document.querySelectorAll('#runs tbody tr')].map(row => [row.dataset.run, row]));
const curves = new Map();
for (const curve of document.querySelectorAll('g[id^="run-"]')) {
  const run = curve.id.split('-')[1];
  if (!curves.has(run)) curves.set(run, []);
  curves.get(run).push(curve);
}
const tip = document.getElementById('tip');
const drawings = document.querySelectorAll('svg');
function point(run, on) {
  drawings.forEach(svg => svg.classList.toggle('dim', on && curves.has(run)));
  (curves.get(run) || []).forEach(curve => curve.classList.toggle('hot', on));
  if (rows.has(run)) rows.get(run).classList.toggle('hot', on);
}
for (const [run, row] of rows) {
  row.addEventListener('mouseenter', () => point(run, true));
  row.addEventListener('mouseleave', () => point(run, false));
}
for (const [run, list] of curves) for (const curve of list) {
  curve.addEventListener('mousemove', event => {
    point(run, true);
    tip.textContent = rows.get(run).dataset.tip;
    tip.style.cssText = `display:block;left:${Math.min(event.clientX + 14, innerWidth - 300)}px;top:${event.clientY + 14}px`;
  });
  curve.addEventListener('mouseleave', () => { point(run, false); tip.style.display = 'none'; });
}
const body = document.querySelector('#runs tbody');
document.querySelectorAll('#runs th').forEach((head, column) => head.addEventListener('click', () => {
  const up = !('up' in head.dataset);
  document.querySelectorAll('#runs th').forEach(other => { delete other.dataset.up; delete other.dataset.down; });
  head.dataset[up ? 'up' : 'down'] = '';
  const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const numeric = head.dataset.sort === 'number';
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === '' || y === '') return (x === '') - (y === '');
    const by = numeric ? x - y : x.localeCompare(y, undefined, {numeric: true});
    return up ? by : -by;
  };
  body.append(...[...body.rows].sort(order));
}));
const hidden = new Set();
document.querySelectorAll('.chip').forEach(chip => chip.addEventListener('click', () => {
  const kind = chip.dataset.kind;
  hidden.has(kind) ? hidden.delete(kind) : hidden.add(kind);
  chip.classList.toggle('off', hidden.has(kind));
  for (const [run, row] of rows) {
    const gone = hidden.has(row.dataset.kind);
    row.style.display = gone ? 'none' : '';
    (curves.get(run) || []).forEach(curve => { curve.style.display = gone ? 'none' : ''; });
  }
}));
"""


def page(told: Comparison, figures: Mapping[str, Figure]) -> str:
    """The whole page. The first figure is of the runs' curves; the others say what a sweep found."""
    title = f"{told.name}: {len(told.runs)} trials" if told.sweep else f"{told.name} compared"
    (curves, *others) = ((name, _drawn(name, figure)) for name, figure in figures.items())
    levels = "A row a level, a curve a run. Colour is what became of that level; point at a curve or a row to single it out."
    first = f'<h2>How each level fared</h2><p class="faint">{levels} {escape(told.remark)}</p>{curves[1]}'
    drawn = "".join(f"<div><h2>{escape(name.capitalize())}</h2>{svg}</div>" for name, svg in others)
    found = f'<div class="found">{drawn}</div>'
    table = f'<h2>Runs</h2><p class="faint">A click on a heading sorts.</p><div class="wide">{_table(told)}</div>'
    seeds = _together("Seeds", SEEDS, told.seeds()) + _together("Acting", ACTED, told.plans())
    parts = [seeds, table, first, found] if len(told.runs) <= FEW else [seeds, first, found, table]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{_lead(told)}{''.join(parts)}<div id='tip'></div><script>{SCRIPT}</script></body></html>\n"
    )


def _lead(told: Comparison) -> str:
    """One sentence, one bar, one button for each thing that became of runs."""
    kinds = told.kinds.items()
    bar = "".join(
        f'<i style="flex:{count};background:{VERDICT_COLOURS[kind]}" title="{count} {kind}"></i>' for kind, count in kinds
    )
    chips = "".join(
        f'<button class="chip" data-kind="{kind}" style="color:{VERDICT_COLOURS[kind]}"><b>{count}</b> {kind}</button>'
        for kind, count in kinds
    )
    link = f'<p class="faint"><a href="{escape(told.link)}">Open this comparison in MLflow</a></p>' if told.link else ""
    sentence = told.sentence[:1].upper() + told.sentence[1:]
    return f'<p class="lead">{escape(sentence)}.</p><div class="bar">{bar}</div><div class="chips">{chips}</div>{link}'


def _table(told: Comparison) -> str:
    columns = told.columns()
    numeric = {title for title, cells in columns.items() if any(cell.value is not None for cell in cells)}
    right = {title for title in numeric if not any(cell.kind for cell in columns[title])}
    heads = "".join(
        f'<th{_classed(title in right)} data-sort="{"number" if title in numeric else "text"}">{escape(title)}</th>'
        for title in columns
    )
    rows = []
    for place in ranked(told):
        run = told.runs[place]
        verdicts = "; ".join(f"{level}: {words}" for level, words in run.verdicts.items())
        cells = "".join(_cell(cells[place], title in numeric, title in right) for title, cells in columns.items())
        rows.append(
            f'<tr data-run="{place}" data-kind="{run.kind}" data-tip="{escape(f"{run.name}: {verdicts}")}">{cells}</tr>'
        )
    return f'<table id="runs"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _together(title: str, note: str, columns: Mapping[str, list[Cell]]) -> str:
    """What is told of several runs at once, where anything is."""
    if not columns:
        return ""
    right = {title for title, cells in columns.items() if any(cell.value is not None for cell in cells)}
    heads = "".join(f"<th{_classed(title in right)}>{escape(title)}</th>" for title in columns)
    rows = [
        "".join(_cell(cell, False, title in right) for title, cell in zip(columns, cells, strict=True))
        for cells in zip(*columns.values(), strict=True)
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    head = f'<h2>{title}</h2><p class="faint">{escape(note[:1].upper() + note[1:])}.</p>'
    return f'{head}<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(cell: Cell, numeric: bool, right: bool) -> str:
    value = "" if cell.value is None else f"{cell.value:.9g}"
    data = f' data-v="{value}"' if numeric else ""
    hint = f' title="{escape(cell.hint)}"' if cell.hint else ""
    text = escape(cell.text)
    if cell.kind:
        text = f'<span class="verdict" style="background:{VERDICT_COLOURS[cell.kind]}">{text}</span>'
    return f"<td{_classed(right)}{data}{hint}>{text}</td>"


def _classed(right: bool) -> str:
    return ' class="number"' if right else ""


def _drawn(name: str, figure: Figure) -> str:
    """The figure as SVG to stand in a page: its own ids apart from those of other figures, and no size of its own."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    own = name.replace(" ", "_")
    return re.sub(r'(id="|url\(#|href="#)(?!run-)', rf"\g<1>{own}-", svg)
