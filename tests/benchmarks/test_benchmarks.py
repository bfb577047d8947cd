"""Every benchmark works, and what it writes can be read: the figures themselves mean nothing here."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if "def measure(" in file.read_text())

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="what others use is read from /proc")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_writes_what_it_found(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(f"benchmarks.{name}").main(["--quick", "--results", str(tmp_path)])
    found = json.loads((tmp_path / f"{name}.json").read_text(), parse_constant=pytest.fail)
    assert found["benchmark"] == name
    assert found["command"] == f"python -m benchmarks.{name}"
    assert found["quick"]
    assert found["question"].endswith("?")
    assert {"cpu", "cores", "threads", "device", "python", "torch"} == set(found["machine"])
    assert found["figures"]["matrix product 1024^3 in float32"]["own"]["median"] > 0
    sides = [figure[side] for figure in found["figures"].values() for side in ("own", "plain", "advantage") if side in figure]
    assert all(side["low"] <= side["median"] <= side["high"] for side in sides)
    assert found["question"] in capsys.readouterr().out


def test_all_of_them_are_run_and_shown() -> None:
    from benchmarks import __main__ as everything
    from benchmarks.table import with_tables

    assert sorted(everything.NAMES) == NAMES
    readme = everything.README.read_text()
    assert all(f"`{name}`" in readme for name in NAMES)
    assert with_tables(readme, everything.RESULTS, everything.NAMES) == readme, "python -m benchmarks --table was forgotten"


def test_results_are_neither_quick_nor_disturbed() -> None:
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        found = json.loads(file.read_text())
        assert not found["quick"], file
        assert not found["disturbed"], file


def test_rounds_take_turns_and_divide_within_a_round() -> None:
    from benchmarks.harness import Bench, Own

    bench, called = Bench(quick=False), []
    seconds = iter([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])

    def slow() -> Own:
        called.append("slow")
        return Own(slow=2 * next(seconds))

    def fast() -> None:
        called.append("fast")
        time.sleep(0.2)

    rows = bench.rounds({"slow": slow, "fast": fast}, 2)
    assert called[:3] == ["slow", "fast", "fast"], "each is warmed up, and one that is timed looked at"
    assert called[3:7] == ["slow", "fast"] * 2
    assert len(rows) == 2
    assert all(0.2 <= row["fast"] < 2 for row in rows)
    bench.figure("x", "s", [2.0, 30.0], [1.0, 10.0])
    assert bench.figures["x"]["advantage"]["median"] == pytest.approx((1 / 2 + 1 / 3) / 2, rel=1e-3)
    bench.figure("y", "1/s", [2.0, 30.0], [1.0, 10.0], rate=True)
    assert bench.figures["y"]["advantage"]["median"] == 2.5


def test_disturbed_rounds_are_repeated_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import harness

    clock = iter(range(0, 10**6, 1000))
    bench = harness.Bench(quick=False)
    monkeypatch.setattr(harness, "busy_seconds", lambda: float(next(clock)))
    rows = bench.rounds({"nothing": lambda: time.sleep(0.05)}, 2)
    assert (len(rows), bench.repeated) == (2, 1)
    assert bench.result()["disturbed"]


def test_own_time_holds_children_that_live_and_that_ended() -> None:
    from benchmarks.machine import busy_seconds, own_seconds

    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    busy, children = busy_seconds(), own_seconds() - time.process_time()
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alive = own_seconds() - time.process_time() - children
        child.communicate(b"\n")
    ended = own_seconds() - time.process_time() - children
    assert 0.25 < alive < 10
    assert 0.25 < ended < 10
    assert busy_seconds() - busy > 0.25
