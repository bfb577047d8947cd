"""`python -m benchmarks` runs every benchmark, each in a process of its own, and writes the tables of README.md."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import RESULTS
from benchmarks.table import with_tables

NAMES = (
    *("step", "data", "penalties", "checkpoint", "startup", "tracking", "masks", "attention", "masked_step", "cost_volume"),
    *("rooms", "planning"),
)
README = Path(__file__).with_name("README.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--table", action="store_true", help="run nothing, only write the tables of the results that there are")
    if not parser.parse_args().table:
        for name in NAMES:
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True, cwd=README.parent.parent)
    README.write_text(with_tables(README.read_text(), RESULTS, NAMES))


if __name__ == "__main__":
    main()
