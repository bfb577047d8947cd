"""The journal of a run, or of all runs of a sweep, mirrored to MLflow: each record once, also after an outage or a crash.

The mirror is a process of its own, `python -m hjepa.tracking RUN|SWEEP`, one a run or one a sweep, fed by the files of the
folder alone: neither importing mlflow, nor creating a database, nor a server that does not answer touches the training thread.
The same command, typed by hand, sends what is left.

A server that does not answer is tried until ten minutes (`HJEPA_TRACKING_PATIENCE` seconds) after the end of the training; what
is left then is sent by the next mirror that starts for a run beside this one. What is sent, and where to: `hjepa.tracking.replica`.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import math
import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from hjepa.tracking.replica import Connect, Replica, Server, Target, connect, read_json
from hjepa.tracking.replicas import Replicas, is_sweep

PERIOD = 2.0
PATIENCE = 600.0
_log = logging.getLogger("hjepa.tracking")


# --- on the trainer's side --------------------------------------------------------------------------------------------


class Mirror:
    """The mirror process of a run that is being trained, or of a sweep. Nothing that goes wrong with it reaches the training.

    Start it once `resolved.yaml` and `versions.json`, or `sweep.json`, are written. Journals and trials may come later, and
    journals may be cut back meanwhile.
    """

    def __init__(self, run: Path) -> None:
        self._run = run.resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._life: IO[str] | None = None

    @staticmethod
    def start(run: Path) -> Mirror:
        """Launches the process and returns at once; does nothing where another process has a mirror of the run."""
        mirror = Mirror(run)
        try:
            # Held until this process is gone, however it ends: so that others can tell whether the run is still trained.
            mirror._life = _locked(mirror._run / ".trainer.lock")
            mirror._launch()
        except OSError as problem:
            _log.warning("the mirror of %s to MLflow: %s", run, problem)
        return mirror

    def _launch(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "hjepa.tracking", str(self._run), "--follow"]
        # The pipe is how the mirror learns that the trainer is gone; a session of its own keeps Ctrl-C from it.
        with open(self._run / "mlflow.log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def finish(self, seconds: float = 30.0) -> bool:
        """Says that the journal is complete, and waits for at most `seconds`: whether the server has everything.

        The mirror goes on alone after that. One that died is started again, to send what it had left.
        """
        if self._life is None:
            return False
        try:
            if self._process is None or self._process.poll() is not None:
                self._launch()
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._life.close()
            return self._process.wait(seconds) == 0
        except (OSError, subprocess.SubprocessError):
            return False


# --- the process ------------------------------------------------------------------------------------------------------


class Sending(Protocol):
    """What brings the server up to a folder; it raises what the server's client raises, and can be called again."""

    def send(self, over: bool) -> None:
        """`over`: nobody trains any more, so what is there is all there is."""
        ...


def replica_of(folder: Path, target: Target, connect: Connect) -> Sending:
    """A run, or a whole sweep."""
    server = Server(target, connect)
    return Replicas(folder, server) if is_sweep(folder) else Replica(folder, server)


def follow(
    replica: Sending, wait: Callable[[float], bool], superseded: Callable[[], bool], patience: float, idle: Callable[[], None]
) -> bool:
    """Mirrors until the trainer is gone and all is sent: whether it is.

    `wait(seconds)` says whether the trainer lives, at the latest after so long. Once it is gone, a server that does not answer
    is tried for `patience` seconds, unless a mirror that a new trainer started waits to take over. `idle` is called between.
    """
    pause, alive, said, deadline = 0.0, True, "", math.inf
    while True:
        was_alive, alive = alive, wait(pause)
        if was_alive and not alive:
            pause, deadline = 0.0, time.monotonic() + patience
        if not alive and superseded():
            return False
        try:
            replica.send(over=not alive)
            if not alive:
                return True
            pause, said = PERIOD, ""
            idle()
        except Exception as failure:
            pause = min(30.0, max(1.0, 2 * pause))
            problem = _first_line(failure)
            if problem != said:
                _log.warning("nothing is lost, trying again: %s", problem)
            said = problem
            if time.monotonic() + pause > deadline:
                return False


def catch_up(run: Path, environment: Mapping[str, str], connect: Connect) -> bool:
    """Sends what is left of a run that has no mirror: whether all is sent. Raises what the server's client raises."""
    with _only_mirror(run, wait=False) as superseded:
        if superseded is None:
            return False
        over = not _is_locked(run / ".trainer.lock")
        replica_of(run, Target.of(run, environment), connect).send(over)
        return over


def _pending_siblings(run: Path) -> Iterator[Path]:
    for note in sorted(run.parent.glob("*/mlflow.json")):
        if note.parent != run and read_json(note).get("pending"):
            yield note.parent


def _catch_up_one(siblings: Iterator[Path], connect: Connect) -> None:
    for sibling in siblings:
        try:
            catch_up(sibling, {}, connect)
        except Exception as failure:
            _log.warning("%s is still not sent: %s", sibling.name, _first_line(failure))
        return


@contextmanager
def _only_mirror(run: Path, wait: bool) -> Iterator[Callable[[], bool] | None]:
    """Makes this the only mirror of a run; gives what tells a waiting one whether the next waits, or None if there is one.

    Who waits writes a word of its own into the lock's file first, so that the one before sees it and gives way.
    """
    path = run / ".mirror.lock"
    word = uuid.uuid4().hex
    if wait:
        path.write_text(word)
    try:
        lock = _locked(path, wait)
    except BlockingIOError:
        yield None
        return
    with lock:
        yield lambda: path.read_text() != word


def _locked(path: Path, wait: bool = False) -> IO[str]:
    file = open(path, "a")  # noqa: SIM115 (open files hold locks)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def _is_locked(path: Path) -> bool:
    try:
        _locked(path).close()
    except BlockingIOError:
        return True
    return False


class _Trainer:
    """The process that holds the other end of our standard input."""

    def __init__(self) -> None:
        self._process = os.getppid()
        self._alive = True

    def wait(self, seconds: float) -> bool:
        if not self._alive:
            time.sleep(seconds)
        elif select.select([sys.stdin], [], [], seconds)[0] or os.getppid() != self._process:
            # What else may hold the pipe is a worker that outlived it.
            self._alive = False
        return self._alive


def _first_line(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}".splitlines()[0][:500]


def _follow_trainer(run: Path) -> bool:
    trainer = _Trainer()
    os.nice(10)
    siblings = _pending_siblings(run)
    with _only_mirror(run, wait=True) as superseded:
        assert superseded is not None
        replica = replica_of(run, Target.of(run), connect)
        patience = float(os.environ.get("HJEPA_TRACKING_PATIENCE", PATIENCE))
        return follow(replica, trainer.wait, superseded, patience, lambda: _catch_up_one(siblings, connect))


def main(arguments: Sequence[str] | None = None) -> int:
    """`RUN|SWEEP`: sends what is left, 0 if that was possible and is all."""
    parser = argparse.ArgumentParser(
        prog="python -m hjepa.tracking", description="Sends what MLflow lacks of a run or a sweep."
    )
    parser.add_argument("run", type=Path, metavar="RUN|SWEEP", help="its folder")
    parser.add_argument("--follow", action="store_true", help="mirror until standard input ends (used by the trainer)")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    run = options.run.resolve()
    if options.follow:
        return 0 if _follow_trainer(run) else 1
    if not (run / "journal.jsonl").exists() and not is_sweep(run):
        print(f"{run}: not the folder of a run or a sweep, it has no journal.jsonl", file=sys.stderr)
        return 2
    try:
        complete = catch_up(run, os.environ, connect)
    except Exception as failure:
        complete = False
        print(f"{run}: not all is sent: {_first_line(failure)}", file=sys.stderr)
    else:
        print(f"{run}: " + ("all is sent" if complete else "still trained, or a mirror is at work on it"), file=sys.stderr)
    return 0 if complete else 1
