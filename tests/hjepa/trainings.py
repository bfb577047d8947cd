"""Small trainings, whole or cut short, and what they leave behind.

`Forks` runs the command `hjepa` in forks of a process that has imported everything, so that one can be started, and killed,
about as often as one likes. That process is this file, run as a script.
"""

from __future__ import annotations

import hashlib
import importlib.metadata as metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hjepa import checkpoint, journal, registry, runs, stack, study, train
from hjepa.contracts import Features, Here, Pair, Spec, States
from hjepa.hookspecs import hookimpl
from hjepa.registry import Components, Registry
from hjepa.study import Study

# --- components with state, and one that goes wrong -------------------------------------------------------------------


class Normed(nn.Module):
    """An encoder with statistics of its own: batch norm, as strangers have it."""

    def __init__(self, spec: Spec, *, width: int = 8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(spec.tokens * spec.width)
        self.out = nn.Linear(spec.tokens * spec.width, width)
        self.spec = spec.giving(width)

    def forward(self, below: States, layers: tuple[str, ...] = ()) -> Features:
        rows = below.tokens.flatten(2)
        normed = self.norm(rows.flatten(0, 1)).view_as(rows)
        return Features(self.out(normed)[:, :, None])


class Queue(nn.Module):
    """A prevention that remembers: states shall differ from those of the last steps."""

    def __init__(self, spec: Spec, *, length: int = 8) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, spec.width))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        fresh = pair.embedding.mean(dim=(0, 1, 2))
        likeness = (self.rows.clone() @ fresh).square().mean()
        if self.training:
            self.rows[self.place % len(self.rows)] = fresh.detach()
            self.place += 1
        return {"likeness": 0.1 * likeness}


class Spoiled(nn.Module):
    """A prevention that goes wrong at one step: its term, or only the gradient of its term."""

    def __init__(self, spec: Spec, *, at: int = 0, value: float = float("nan"), only_gradient: bool = False) -> None:
        super().__init__()
        self.at, self.value, self.only_gradient = at, value, only_gradient

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        mean = pair.embedding.square().mean()
        if here.step != self.at:
            return {"drift": 0.1 * mean}
        return {"drift": (mean - mean.detach()).sqrt() if self.only_gradient else mean * self.value}


@hookimpl
def register(components: Components) -> None:
    components.add("encoder", "normed", f"{__name__}:Normed")
    components.add("prevention", "queue", f"{__name__}:Queue")
    components.add("prevention", "spoiled", f"{__name__}:Spoiled")


def installed() -> Registry:
    """What is installed, and the components above, through the same door."""
    own = metadata.EntryPoint("trainings", __name__, registry.GROUP)
    return registry.load(points=[*metadata.entry_points(group=registry.GROUP), own])


# --- small studies ----------------------------------------------------------------------------------------------------

STEPS = 8
DIGITS = {"name": "moving_digits", "frames": 8, "size": 16, "digit_size": 8, "samples": 24, "held_out": 12}
PREDICTOR = {"name": "causal", "depth": 1, "heads": 2, "width": 8, "mlp_ratio": 2.0, "dropout": 0.2}
FULL: dict[str, Any] = {
    "seed": 3,
    "data": {"video": {**DIGITS, "batch": 4}},
    "levels": {
        "frame": {
            "name": "forecast",
            "encoder": {"name": "conv", "width": 8, "base": 4, "stages": 2},
            "predictor": PREDICTOR,
            "energy": "l2",
            "prevention": [{"name": "ema", "momentum": {"from": 0.9, "to": 1.0}}, "queue"],
            "rollout": 2,
        },
        "moment": {
            "name": "forecast",
            "stride": 2,
            "crop": 3,
            "encoder": {"name": "normed"},
            "predictor": PREDICTOR,
            "energy": "l1",
            "prevention": [{"name": "vicreg", "projector": [8, 8]}, {"name": "sigreg", "slices": 8}],
        },
    },
    "train": {
        "steps": STEPS,
        "optimizer": {"name": "adamw", "lr": {"from": 0.01, "to": 0.0, "shape": "cosine", "warmup": 2}, "weight_decay": 0.05},
        "clip": 1.0,
        "log_every": 1,
        "diagnose_every": 2,
        "checkpoint_every": 3,
        "device": "cpu",
        "track": False,
    },
    "evaluate": {"samples": 12, "batch": 8},
    "probes": {"where": {"name": "regression", "level": "moment", "target": "position"}},
}
"""All that has state: a teacher, a queue, batch norm, moments, dropout, a rollout and a crop keyed by the step."""

SMALL: dict[str, Any] = {
    "seed": 0,
    "data": {"video": {**DIGITS, "batch": 4}},
    "levels": {
        "frame": {
            "name": "forecast",
            "encoder": {"name": "conv", "width": 8, "base": 4, "stages": 2},
            "predictor": {**PREDICTOR, "dropout": 0.0},
            "energy": "l2",
            "prevention": ["vicreg"],
        },
        "moment": {
            "name": "forecast",
            "stride": 2,
            "gradient": "stop",
            "encoder": {"name": "latent_mlp", "width": 8, "hidden": 8},
            "predictor": {**PREDICTOR, "dropout": 0.0},
            "energy": "l2",
            "prevention": [{"name": "sigreg", "slices": 8}],
        },
    },
    "train": {"steps": 4, "log_every": 1, "diagnose_every": 2, "checkpoint_every": 2, "device": "cpu", "track": False},
    "evaluate": {"samples": 12, "batch": 8},
}
"""Two levels without dropout and without state of their own."""


def changed(below: Mapping[str, Any], *changes: tuple[str, Any]) -> dict[str, Any]:
    """A study with other values at dotted keys."""
    result: dict[str, Any] = deepcopy(dict(below))
    for key, value in changes:
        *path, last = key.split(".")
        at: Any = result
        for part in path:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        at[int(last) if isinstance(at, list) else last] = value
    return result


def parsed(raw: Mapping[str, Any]) -> Study:
    """A study that can be trained."""
    plan = study.parse(raw, installed())
    stack.check(plan)
    return plan


def opened(folder: Path, raw: Mapping[str, Any]) -> train.Trainer:
    """A trainer at step 0, in a new run folder."""
    plan = parsed(raw)
    return train.Trainer(plan, runs.create(plan, folder, installed()), installed(), lambda message: None)


def trained(
    folder: Path, raw: Mapping[str, Any], resume: bool = False, say: Callable[[str], None] = lambda message: None
) -> train.Result:
    """A whole training, in this process."""
    plan = parsed(raw)
    run = runs.reopen(plan, folder) if resume else runs.create(plan, folder, installed())
    return train.train(plan, run, installed(), resume, say, lambda trainer, values: None, lambda result: None)


# --- what a training leaves -------------------------------------------------------------------------------------------


def group(name: str) -> str:
    """Which part of a checkpoint a tensor belongs to."""
    if name.startswith("optimizer/"):
        return "optimizer"
    return "teacher" if ".teacher." in name else "weights"


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """sha256 of the weights (buffers included), the teacher and the optimizer."""
    found = {part: hashlib.sha256() for part in ("weights", "teacher", "optimizer")}
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        said = f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode()
        found[group(name)].update(said + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return {part: digest.hexdigest() for part, digest in found.items()}


@dataclass(frozen=True)
class Left:
    """What a training left in its folder, without the time at which it was written."""

    step: int
    digests: dict[str, str]
    facts: dict[str, Any]
    records: list[tuple[int, int, dict[str, float]]]
    """(n, step, metrics)."""
    events: list[tuple[str, int]]


def left(folder: Path) -> Left:
    newest = checkpoint.newest(folder / "checkpoints", lambda message: None)
    lines = list(journal.read(folder / "journal.jsonl"))
    records = [(line["n"], line["step"], line["metrics"]) for line in lines if "n" in line]
    events = [(line["event"], line["step"]) for line in lines if "event" in line]
    return Left(newest.step, digests(newest.tensors), newest.facts, records, events)


def assert_same(one: Left, other: Left) -> None:
    """The same training, however often it was interrupted: weights, teacher, optimizer and record."""
    assert one.step == other.step
    assert one.digests == other.digests
    assert one.facts == other.facts
    assert [n for n, _, _ in one.records] == list(range(len(one.records)))
    steps = [step for _, step, _ in one.records[:-1]]  # the last record is what the probes say of the last step
    assert steps == sorted(set(steps))
    assert one.records == other.records
    assert one.events[-1] == ("finished", one.step)


# --- many of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How the processes of one command ended."""

    codes: list[int]
    """Exit codes; minus the number of the signal for one that was killed."""
    said: list[str]
    """stdout and stderr of each."""
    seconds: float
    calls: dict[str, int]
    """How often the first one made each call that changes something on the disk."""
    within: str
    """Where the first one was when it killed itself."""
    behind: bool
    """Whether a process of theirs was still there half a second later."""

    @property
    def code(self) -> int:
        return self.codes[0]


class Forks:
    """Runs `hjepa` in forks of one warm process."""

    def __enter__(self) -> Forks:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def __call__(self, cwd: Path, *argv: str, processes: int = 1, **trouble: Any) -> Ended:
        """`hjepa ARGV` in `cwd`, and what shall happen to it, or to that of its processes whose rank is `which`.

        after: seconds until it is killed. call, of: it kills itself at this call that changes something on the disk, or at this
        one of a kind, half done where it writes. step, signal: it gets the signal within this step, or within the step `probes`;
        `times`: so often; `group`: its workers get it as well.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"cwd": str(cwd), "argv": argv, "processes": processes, "trouble": trouble}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))


def serve() -> None:
    """A request a line."""
    import torchdata.stateful_dataloader  # noqa: F401

    import hjepa.report
    from hjepa import cli, progress, tracking  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background, a shell has it ignored
    made = installed()
    with tempfile.TemporaryDirectory() as folder:
        trained(Path(folder) / "warm", FULL)
    registry.load = lambda blocked=(), points=None: made
    hjepa.report.write = lambda result: None  # pictures take longer than all the rest, and hold nothing that a training needs
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote: that takes a killed machine
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answered(cli.main, **request)), flush=True)


def answered(main: Callable[[], None], cwd: str, argv: list[str], processes: int, trouble: dict[str, Any]) -> dict[str, Any]:
    begun, told = time.monotonic(), Path(cwd) / ".told"
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if processes > 1 else {}
    environments = [{**port, "WORLD_SIZE": str(processes), "RANK": str(rank)} for rank in range(processes)] if port else [{}]
    told.unlink(missing_ok=True)
    said = [Path(cwd) / f".said-{rank}" for rank in range(processes)]
    which = trouble.pop("which", 0)
    children = [
        forked(main, cwd, argv, said[rank], environments[rank], trouble if rank == which else {}) for rank in range(processes)
    ]
    if "after" in trouble:
        time.sleep(trouble["after"])
        os.kill(children[which], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    calls, within = json.loads(told.read_text()) if told.exists() else ({}, "")
    texts = [file.read_text() for file in said]
    seconds = time.monotonic() - begun
    behind = any(outlived(child) for child in children)
    return {"codes": codes, "said": texts, "seconds": seconds, "calls": calls, "within": within, "behind": behind}


def outlived(group: int, patience: float = 0.5) -> bool:
    """Whether any process of a group is there after some time, other than the dead that nobody has buried."""
    until = time.monotonic() + patience
    while members(group):
        if time.monotonic() > until:
            return True
        time.sleep(0.01)
    return False


def members(group: int) -> list[int]:
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            state, _, of, *_ = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            found += [int(process)] * (int(of) == group and state != "Z")
    return found


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def forked(
    main: Callable[[], None], cwd: str, argv: list[str], said: Path, environment: dict[str, str], trouble: dict[str, Any]
) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(cwd)
        os.environ.update(environment)
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["hjepa", *argv]
        counter = Counter(trouble.get("call"), trouble.get("of"), Path(cwd) / ".told")
        show_weights(Path(cwd) / f".weights-{environment.get('RANK', 0)}")
        troubled(trouble)
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        if environment.get("RANK", "0") == "0":
            counter.tell("")
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Counter:
    """Counts the calls that change something on the disk, and ends the process at one of them."""

    CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink", "ftruncate")

    def __init__(self, last: int | None, of: str | None, file: Path) -> None:
        self.last, self.of, self.file, self.process = last, of, file, os.getpid()
        self.counts = dict.fromkeys(self.CALLS, 0)
        self.real = {name: getattr(os, name) for name in self.CALLS}
        for name in self.CALLS:
            setattr(os, name, self._counting(name))

    def _counting(self, name: str) -> Callable[..., Any]:
        real = self.real[name]

        def call(*arguments: Any, **options: Any) -> Any:
            if os.getpid() == self.process:
                self.counts[name] += 1
                if self.of in (None, name) and self.last == (self.counts[name] if self.of else sum(self.counts.values())):
                    if name == "write":
                        real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                    self.tell(self._where(name))
                    os.kill(self.process, signal.SIGKILL)
            return real(*arguments, **options)

        return call

    def _where(self, name: str) -> str:
        frame = sys._getframe(2)
        while frame.f_back and "hjepa" not in Path(frame.f_code.co_filename).parts[-2:-1]:
            frame = frame.f_back
        return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}: {name}"

    def tell(self, where: str) -> None:
        for name, real in self.real.items():
            setattr(os, name, real)
        self.file.write_text(json.dumps([self.counts, where]))


def show_weights(file: Path) -> None:
    """Writes down what each process has in its memory at the end, whether or not it writes checkpoints."""
    real = train._finished

    def finished(trainer: train.Trainer, *rest: Any, **facts: Any) -> None:
        file.write_text(json.dumps(digests(trainer.state()[0])))
        real(trainer, *rest, **facts)

    train._finished = finished


def troubled(trouble: dict[str, Any]) -> None:
    """Sends the signal from within a step, after its gradient is there and before the optimizer has it."""
    if "signal" not in trouble:
        return
    real = train.Trainer.forward_backward

    def forward_backward(self: train.Trainer, step: int, batches: Any) -> Any:
        outcomes = real(self, step, batches)
        if step == trouble["step"]:
            for _ in range(trouble.get("times", 1)):
                sent(trouble["signal"], trouble.get("group", False))
        return outcomes

    def probed(self: train.Trainer, *asked: Any, **more: Any) -> Any:
        sent(trouble["signal"], False)
        for _ in range(1000):  # another thread may be the one that is told first
            time.sleep(0.01)
        raise AssertionError("still here")

    if trouble["step"] == "probes":
        train.Trainer.probed = probed
    else:
        train.Trainer.forward_backward = forward_backward


def sent(number: int, to_all: bool) -> None:
    """By another process: workers obey their parent in any case. Until it has acted: of two that wait there would be one."""
    target, before = -os.getpid() if to_all else os.getpid(), signal.getsignal(number)
    sender = os.fork()
    if not sender:
        os.setsid()
        os.kill(target, number)
        os._exit(0)
    os.waitpid(sender, 0)
    for _ in range(200):
        time.sleep(0.05)
        if signal.getsignal(number) is not before:
            return


if __name__ == "__main__":
    serve()
