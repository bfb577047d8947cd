"""What a person types. Nothing heavy is imported before a command needs it: help and listings come at once.

People read stderr; with `--json` the last line of stdout is one object. Exit codes: 0 done, 1 failed, 2 the person's mistake,
3 stopped by a signal with a checkpoint saved.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hjepa.errors import Mistake, Problem

if TYPE_CHECKING:
    from rich.console import Console

    from hjepa.registry import Registry
    from hjepa.study import Study
    from hjepa.train import Result, Trainer

DONE, FAILED, MISTAKE, STOPPED = 0, 1, 2, 3
WIDE = 150
"""Columns where the output goes to a file."""
USAGE = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""What click raises, be it the package or the copy of it within typer."""
TRACKING_PATIENCE = 20.0
"""Seconds that the end of a command waits for MLflow to have everything."""

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="a study by its path, or by its name in studies/")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="as in levels.frame.encoder.width=128")]
AsJson = Annotated[bool, typer.Option("--json", help="the result as one line of JSON on stdout")]
Without = Annotated[list[str] | None, typer.Option("--no-plugin", metavar="NAME", help="a plugin that is not even imported")]


@app.command()
def train(
    study: StudyName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the run's folder; by default the next free one in runs/")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest intact checkpoint")] = False,
    as_json: AsJson = False,
    no_plugin: Without = None,
) -> None:
    """Train a study; say of each level whether it is alive, probe it, draw it."""
    registry = _plugins(no_plugin)
    plan = _study(study, overrides, registry)
    with _quiet_libraries():
        from hjepa import distributed, runs, stack

        distributed.start()
        stack.check(plan)
        run = distributed.from_first(lambda: runs.reopen(plan, out) if resume else runs.create(plan, out, registry))
        result = _train(plan, run, registry, resume)
        distributed.stop()
    if as_json and _speaks():
        _print_json(_told(result))
    raise typer.Exit({"done": DONE, "stopped": STOPPED}.get(result.outcome, FAILED))


def _train(plan: Study, run: Any, registry: Registry, resume: bool) -> Result:
    from hjepa import tracking
    from hjepa.alarm import standing
    from hjepa.report import table, write
    from hjepa.train import train as train_study

    console = _console()
    mirror = tracking.Mirror.start(run.path) if plan.train.track and _speaks() else None
    with _progress(plan, console) as progress:
        result = train_study(plan, run, registry, resume, _say, progress, write)
    if result.outcome == "stopped":
        _say(f"stopped after step {result.step}; go on with --resume")
    else:
        table(result.verdicts, result.metrics, console, result.clocks)
        for level, effects in result.effects.items():
            _say(f" {standing(level, effects)}")
        if result.outcome != "done":
            _say(f"{result.outcome}: not trained to its end")
        _say(f"{run.path} ({result.seconds:.0f} s; picture: {run.figures / 'summary.png'})")
    if mirror is not None and not mirror.finish(TRACKING_PATIENCE):
        _say(
            f"MLflow does not have all of it yet; the rest is sent in the background, or by: python -m hjepa.tracking {run.path}"
        )
    return result


def _told(result: Result) -> dict[str, Any]:
    return {
        "run": str(result.run),
        "seconds": round(result.seconds, 3),
        "verdicts": result.verdicts,
        "metrics": result.metrics,
    }


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run's folder, or its name in runs/")],
    overrides: Overrides = None,
    probe: Annotated[str | None, typer.Option(metavar="LABEL", help="this probe alone")] = None,
    as_json: AsJson = False,
    no_plugin: Without = None,
) -> None:
    """Show the newest checkpoint of a run to the probes of its study, on other data or to other probes where that is asked for."""
    registry = _plugins(no_plugin)
    with _quiet_libraries():
        from hjepa import report, runs
        from hjepa.study import parse
        from hjepa.train import evaluate_run
        from hjepa.written import changed

        found, problems = runs.find(run), list[Problem]()
        plan = parse(
            changed(found.resolved(), overrides or [], ("data", "evaluate", "probes", "train.device"), problems),
            registry,
            str(found.path),
        )
        plan.problems += problems
        plan.complain()
        # a run's picture is of the run as it was trained
        result = evaluate_run(plan, found, registry, probe, _say, report.write if not overrides else lambda result: None)
    report.table(result.verdicts, result.metrics, _console(), result.clocks)
    if not overrides:
        _say(f"picture: {found.figures / 'summary.png'}")
    if as_json:
        _print_json(_told(result))


@app.command()
def sweep(
    study: StudyName,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(metavar="N", min=1, help="how many there shall be in all")] = None,
    workers: Annotated[int, typer.Option(metavar="W", min=1, help="processes that train at the same time")] = 1,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="a database that keeps the trials, for many machines: postgresql://...")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="the sweep's folder; runs/STUDY-sweep by default")] = None,
    as_json: AsJson = False,
    no_plugin: Without = None,
) -> None:
    """Train a study many times, as its `search` says; again, it goes on where it was."""
    registry = _plugins(no_plugin)
    plan = _study(study, overrides, registry)
    with _quiet_libraries():
        from hjepa import search, stack, tracking
        from hjepa import sweep as sweeps
        from hjepa.sweep import workers as crews

        plan.problems += search.problems(plan, registry)
        stack.check(plan)
        wanted = sweeps.budget(plan, trials)
        found = sweeps.Sweep(sweeps.enter(plan, out, registry), registry, storage)
        left = found.left(wanted)
        mirror = tracking.Mirror.start(found.folder) if plan.train.track and left else None
        ended = crews.Crew(found, wanted, workers, storage, no_plugin or (), _say).run() if left else DONE
        standing = crews.told(found)
    crews.table(standing, _console())
    if ended == STOPPED:
        _say("stopped with checkpoints saved; the same command goes on")
    if mirror is not None and not mirror.finish(TRACKING_PATIENCE):
        _say(
            f"MLflow does not have all of it yet; the rest is sent in the background, or by: python -m hjepa.tracking {found.folder}"
        )
    if as_json:
        _print_json(standing)
    raise typer.Exit(ended)


@app.command()
def plan(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="a run's folder, or its name in runs/; or a study without levels"),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="where plan.json and pictures go; by default the run's folder")
    ] = None,
    as_json: AsJson = False,
    no_plugin: Without = None,
) -> None:
    """Act in the world of a run's study: plan in what its levels have learned, and by others beside it."""
    registry = _plugins(no_plugin)
    with _quiet_libraries():
        from hjepa import planning
        from hjepa.planning import shown

        found = planning.of_run(run, overrides or [], registry, _say)
        shown.place(found, out)  # where nothing can be written, that is said before minutes are spent
        acted = {}
        for name in found.policies():
            acted[name] = found.act(name)
            _say(shown.line(name, acted[name]))
        shown.table(acted, _console())
        for path in shown.write(found, acted, out):
            _say(f"picture: {path}")
    if as_json:
        _print_json(shown.told(found, acted))


@app.command()
def compare(
    references: Annotated[
        list[str],
        typer.Argument(metavar="RUN|SWEEP...", help="a folder, a name in runs/, an MLflow id, or a condition in quotes"),
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="where pictures and page go; by default compare/")] = None,
    as_json: AsJson = False,
) -> None:
    """Lay runs side by side: what differs, what became of each level; a table, pictures, a page, and the link to MLflow."""
    with _quiet_libraries():
        from hjepa import compare as compared
        from hjepa.compare import served, terminal

        told = compared.gather(references)
        terminal.table(told, _console())
        files = compared.write(told, out or compared.place_of(told))
        _say(f"page: {files[0]}")
        for line in served.shown(told.runs, told.sweep, files):
            _say(line)
    if as_json:
        _print_json(compared.as_json(told, files))


@app.command()
def check(
    study: StudyName,
    overrides: Overrides = None,
    work: Annotated[bool, typer.Option("--flops", help="make the stack, and count what a step computes")] = False,
    as_json: AsJson = False,
    no_plugin: Without = None,
) -> None:
    """Compose a study without allocating anything; say what each level reads, and refuse what cannot work."""
    registry = _plugins(no_plugin)
    plan = _study(study, overrides, registry)
    with _quiet_libraries():
        from hjepa import flops, report, search, stack

        plan.problems += search.problems(plan, registry)
        if plan.order["levels"]:
            rows = stack.described(stack.check(plan))
            counted = flops.of_step(plan) if work else None
        else:
            plan.complain()
            rows, counted = [], None
    if as_json:
        _print_json({"study": plan.name, "levels": rows} | ({"flops": counted} if work else {}))
    else:
        notes = [search.told(plan.search)] if plan.search else []
        notes += [f"a step computes {counted / 1e9:,.3g} GFLOP, forward and backward"] if counted is not None else []
        notes += [] if rows else ["it learns nothing, and acts with the world itself as the model"]
        report.composition(rows, _console(), notes)


@app.command()
def plugins(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="components of this kind alone")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="this component, with its options")] = None,
    check_all: Annotated[bool, typer.Option("--check", help="import every component and hold it against its protocol")] = False,
    as_json: AsJson = False,
    no_plugin: Without = None,
) -> None:
    """List plugins and components: who gives them, where they are written, what they can be told; and what failed."""
    from hjepa import listing

    registry = _plugins(no_plugin)
    entries = listing.chosen(registry, kind, name)
    broken = listing.imported(entries) if check_all else {}
    if as_json:
        _print_json(listing.told(registry, entries, broken))
    else:
        listing.show(registry, entries, broken, name is not None, _console(stderr=False), _say)
    if broken or registry.failures or registry.conflicts():
        raise typer.Exit(FAILED)


# --- what all commands share ------------------------------------------------------------------------------------------


def _plugins(blocked: list[str] | None) -> Registry:
    from hjepa import registry

    return registry.load(blocked or ())


def _study(reference: str, overrides: list[str] | None, registry: Registry) -> Study:
    """The study with whatever is wrong in it noted; composing it raises all of it at once."""
    with _quiet_libraries():
        from hjepa import optimizers, planning
        from hjepa.study import read

        plan = read(reference, overrides or (), registry)
        plan.problems += optimizers.problems(plan) + planning.problems(plan)
    return plan


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """What libraries warn of is for developers; people are told what they can act on."""
    import warnings

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def _console(stderr: bool = True) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, width=None if sys.stderr.isatty() else WIDE, quiet=not _speaks())


def _speaks() -> bool:
    """Whether this process speaks for all that `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK") == "0"


def _say(message: str) -> None:
    if _speaks():
        print(message, file=sys.stderr, flush=True)


def _hear() -> None:
    """What components log under `hjepa` is said too."""
    import logging

    handler = logging.Handler()
    handler.emit = lambda record: _say(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("hjepa")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


def _complain(message: str) -> None:
    who = "" if _speaks() else f"process {os.environ.get('RANK')}: "
    print(who + message, file=sys.stderr, flush=True)


def _print_json(told: Mapping[str, Any]) -> None:
    print(json.dumps(told), flush=True)


@contextmanager
def _progress(plan: Study, console: Console) -> Iterator[Any]:
    """A bar where somebody looks; a line now and then where the output goes to a file."""
    from hjepa.progress import Bar, Lines

    with (Bar if console.is_terminal else Lines)(console, plan.train.steps) as shown:

        def progress(trainer: Trainer, values: Mapping[str, float]) -> None:
            shown.update(trainer.done, values, trainer.look.verdicts, trainer.samples)

        yield progress


def main() -> None:
    """The command line, with every mistake as one message and no traceback."""
    _hear()
    try:
        sys.exit(app(prog_name="hjepa", standalone_mode=False))
    except Mistake as error:
        _complain(str(error))
        sys.exit(MISTAKE)
    except (typer.Abort, KeyboardInterrupt):
        _say("stopped before anything new was saved")
        sys.exit(130)
    except Exception as error:
        _usage_or_raise(error)


def _usage_or_raise(error: Exception) -> None:
    """A wrong call is the person's mistake; whatever else is raised here is ours, or the machine's."""
    if isinstance(error, USAGE):
        said: str = error.format_message()  # type: ignore[attr-defined]
        _complain(said if said.startswith("Usage") else f"hjepa: {said}")
        sys.exit(MISTAKE)
    if type(error).__name__ == "Diverged":
        _complain(str(error))
        sys.exit(FAILED)
    raise error
