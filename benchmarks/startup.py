"""How long do `hjepa --help` and `hjepa plugins` take, from the start of the process to its end?

Beside an interpreter that does nothing, and one that imports torch, which neither command does. Files are in the page cache.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness import Bench, Case, run

HJEPA = str(Path(sysconfig.get_path("scripts")) / "hjepa")
TORCH = 'python -c "import torch"'
COMMANDS = {
    "hjepa --help": [HJEPA, "--help"],
    "hjepa plugins": [HJEPA, "plugins"],
    'python -c "pass"': [sys.executable, "-c", "pass"],
    TORCH: [sys.executable, "-c", "import torch"],
}


def measure(bench: Bench) -> None:
    cases: dict[str, Case] = {
        name: partial(subprocess.run, command, check=True, capture_output=True)
        for name, command in COMMANDS.items()
        if not (bench.quick and name == TORCH)
    }
    rows = bench.rounds(cases, 5)
    for name in cases:
        bench.figure(name, "ms", [1e3 * row[name] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    run(__file__, str(__doc__), measure, arguments)


if __name__ == "__main__":
    main()
