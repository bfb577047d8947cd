"""What a benchmark runs on, and how busy it is with other things. Linux alone says it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

TICKS = os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """CPU time that the whole machine was at work, or was taken from it by another one."""
    user, nice, system, _, _, interrupt, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupt + soft + stolen) / TICKS


def own_seconds() -> float:
    """CPU time of this process and of all that descend from it, those that ended and were waited for too."""
    parents, ticks = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        process = int(file.parent.name)
        parents[process], ticks[process] = int(fields[1]), sum(map(int, fields[11:15]))
    own = fresh = {os.getpid()}
    while fresh:
        fresh = {process for process, parent in parents.items() if parent in fresh}
        own = own | fresh
    return sum(ticks[process] for process in own) / TICKS


def described(device: torch.device) -> dict[str, Any]:
    """Without names of hosts or people."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
