"""One way to measure: the cases in turn, A B A B ..., in one process, beside what the machine could do meanwhile.

A figure is the median over rounds with its quartiles. What is compared is divided within each round first, so that a machine
that slows down takes both sides with it. Each round also holds a matrix product, and the CPU time that other processes took.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import busy_seconds, described, own_seconds
from benchmarks.table import table

RESULTS = Path(__file__).parent / "results"
QUIET = 0.2
"""Cores that others may use in a round; beyond it the round is repeated."""
SHORTEST = 0.1
"""Seconds: cases that take less are called several times a round."""

Case = Callable[[], object]
"""What is timed, unless it gives its `Own` seconds."""
Row = dict[str, float]
"""One round: seconds of each case, `gemm` in GFLOP/s and `others` in cores."""


class Own(Row):
    """What a case gives that times itself what counts: seconds by name. One call a round is enough."""


class Bench:
    """One run of one benchmark. `quick` tries that everything works: its figures mean nothing."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.figures: dict[str, dict[str, Any]] = {}
        self.rows: list[Row] = []
        self.repeated = 0
        self._square = torch.randn(1024, 1024, device=self.device)
        self._gemm()

    def rounds(self, cases: Mapping[str, Case], count: int = 7) -> list[Row]:
        """The `count` quietest rounds, of half as many more where others disturb."""
        count, most = (1, 1) if self.quick else (count, count + math.ceil(count / 2))
        calls = {name: self._calls(case) for name, case in cases.items()}
        rows: list[Row] = []
        while len(rows) < most and sum(row["others"] <= QUIET for row in rows) < count:
            rows.append(self._round(cases, calls))
        self.repeated += len(rows) - count
        kept = sorted(rows, key=lambda row: row["others"])[:count]
        self.rows += kept
        return kept

    def figure(
        self, what: str, unit: str, own: Iterable[float], plain: Iterable[float] | None = None, rate: bool = False
    ) -> None:
        """Writes down what the rounds gave; beside a plain reference also how many times better it is."""
        ours = np.array(list(own))
        found = {"unit": unit, "own": spread(ours)}
        if plain is not None:
            theirs = np.array(list(plain))
            found |= {"plain": spread(theirs), "advantage": spread(ours / theirs if rate else theirs / ours)}
        self.figures[what] = found

    def synchronize(self) -> None:
        """Waits until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def result(self) -> dict[str, Any]:
        """What was found, on what, and how quiet it was."""
        self.figure("matrix product 1024^3 in float32", "GFLOP/s", [row["gemm"] for row in self.rows])
        others = max(row["others"] for row in self.rows)
        quiet = {
            "rounds": len(self.rows),
            "repeated": self.repeated,
            "others_cores": round(others, 3),
            "disturbed": others > QUIET,
        }
        on = {"date": time.strftime("%Y-%m-%d"), "machine": described(self.device)}
        return {"quick": self.quick, **on, **quiet, "figures": self.figures}

    def _calls(self, case: Case) -> int:
        """How often to call it in a round: warms up, then looks how long one call takes."""
        if isinstance(case(), Own) or self.quick:
            return 1
        self.synchronize()
        (seconds,) = self._timed("", case, 1).values()
        return math.ceil(SHORTEST / seconds)

    def _round(self, cases: Mapping[str, Case], calls: Mapping[str, int]) -> Row:
        begun, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
        row: Row = {}
        for name, case in cases.items():
            row |= self._timed(name, case, calls[name])
        row["gemm"] = self._gemm()
        others = (busy_seconds() - busy) - (own_seconds() - own)
        return row | {"others": max(0.0, others / (time.perf_counter() - begun))}

    def _timed(self, name: str, case: Case, calls: int) -> Row:
        begun = time.perf_counter()
        for _ in range(calls):
            told = case()
        self.synchronize()
        return told if isinstance(told, Own) else {name: (time.perf_counter() - begun) / calls}

    def _gemm(self, products: int = 5) -> float:
        begun = time.perf_counter()
        for _ in range(products):
            self._square @ self._square
        self.synchronize()
        return products * 2 * 1024**3 / (time.perf_counter() - begun) / 1e9


def spread(values: np.ndarray[Any, Any]) -> dict[str, float]:
    """Median and quartiles, in four digits."""
    low, median, high = (float(f"{value:.4g}") for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": median, "low": low, "high": high}


def run(file: str, about: str, measure: Callable[[Bench], None], arguments: Sequence[str] | None) -> None:
    """The command line of the benchmark in `file`, whose docstring begins with its question."""
    name, question = Path(file).stem, about.partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=question)
    parser.add_argument("--quick", action="store_true", help="try that it works; written only where --results says so")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where NAME.json goes; by default benchmarks/results")
    options = parser.parse_args(arguments)
    bench = Bench(options.quick)
    measure(bench)
    result = {"benchmark": name, "question": question, "command": parser.prog, **bench.result()}
    folder = options.results or (None if options.quick else RESULTS)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
