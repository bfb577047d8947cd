"""The seams of hjepa: everything that a plugin can do, one hook each. Read this first.

A plugin is a module (or an object) behind an entry point of the group `hjepa`:

    # pyproject.toml
    [project.entry-points.hjepa]
    my_parts = "my_parts"

    # my_parts.py
    from hjepa.hookspecs import hookimpl

    @hookimpl
    def register(components):
        components.add("energy", "huber", "my_parts_huber:Huber")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from hjepa.registry import Components

PROJECT = "hjepa"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

# --- components ------------------------------------------------------------------------------------------------------


@hookspec
def register(components: Components) -> None:
    """Name the plugin's components: `components.add(kind, name, "module:Class")`. Import nothing heavy here."""


# --- the life of a run: on the training thread, outside the compiled region, in this order ----------------------------


@hookspec
def run_started(run: Path, study: dict[str, Any], step: int) -> None:
    """Training begins at `step` (0, or where it resumes), in the run folder `run`."""


@hookspec
def step_done(run: Path, step: int) -> None:
    """The optimizer's step `step` is taken. Called at every step: return quickly."""


@hookspec
def evaluated(run: Path, step: int, metrics: dict[str, float]) -> None:
    """Probes were measured."""


@hookspec
def checkpoint_saved(run: Path, step: int, checkpoint: Path) -> None:
    """A checkpoint is on the disk, whole."""


@hookspec
def run_finished(run: Path, step: int, outcome: str) -> None:
    """Training ended: `done`, `stopped` by a signal, or `failed`."""
