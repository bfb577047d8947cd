"""The training loop, on one screen; everything that it calls is a pure function of the step or is in the checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hjepa import accumulate, checkpoint, distributed, loading, optimizers, runs
from hjepa.collapse import collapsed
from hjepa.contracts import Batch, Outcome
from hjepa.effects import Effect, plain
from hjepa.errors import Mistake
from hjepa.evaluate import evaluate
from hjepa.journal import Journal, Unwritten, read
from hjepa.making import compile_blocks, device, load_weights, made_sources, new_stack, precision, transforms
from hjepa.monitor import Look, Monitor
from hjepa.randomness import seed_default_generators
from hjepa.registry import Registry
from hjepa.stack import Stack, load_state, unique_state
from hjepa.study import Study

SETTLED = 0.1
"""The share of training after which a prediction no better than its trivial baseline is a finding."""


class Diverged(Exception):
    """Training stopped before a gradient that is not finite reached the weights."""


class Halt(Exception):
    """Raised by whoever watches a training: it ends in good order, unfinished and not to be resumed, and the run says how."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome
        super().__init__(outcome)


@dataclass
class Result:
    """How a training ended, and what is known of it."""

    outcome: str
    run: Path
    step: int
    clocks: dict[str, int]
    """Base ticks between two steps of each level."""
    seconds: float = 0.0
    verdicts: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    effects: dict[str, dict[str, Effect]] = field(default_factory=dict)
    """level -> `<level>/<term>` -> what the term does to the level at the end."""
    draws: list[Callable[[Any], None]] = field(default_factory=list)


class Trainer:
    """One training, at whatever step it stands."""

    def __init__(self, study: Study, run: runs.Run, registry: Registry, say: Callable[[str], None]) -> None:
        self.study, self.run, self.registry, self.say = study, run, registry, say
        self.device = device(study)
        datasets = made_sources(study)
        self.sources = loading.sources(study, datasets, transforms(study))
        self.stack = new_stack(study, datasets, self.device)
        self.precision = precision(study, self.device)
        if study.train.compile:
            compile_blocks(self.stack)
        self.parameters = [parameter for parameter in self.stack.parameters() if parameter.requires_grad]
        self.buffers = kept_buffers(self.stack)
        self.optimizer = optimizers.make(study, self.stack)
        self.monitor = Monitor(self.stack, self.sources, self.device)
        self.look = Look({}, {}, {})
        self.done = self.saved = 0
        self.regular = (study.train.log_every, study.train.diagnose_every, study.evaluate.every)

    # --- the loop ---

    def train(self, journal: Journal | Unwritten, progress: Callable[[Trainer, Mapping[str, float]], None]) -> str:
        """From the step where it stands to the last, or until a signal: `done` or `stopped`."""
        train = self.study.train
        self._begin(journal)
        steps = range(self.done, train.steps)
        reading = loading.batches(self.sources, steps, train.workers, self.device)
        with caught_signals() as signals, closing(reading):
            for step, batches in reading:
                outcomes = self.step(step, batches)
                self.done = step + 1
                last = self.done == train.steps
                if last or any(self.done % every == 0 for every in self.regular if every):
                    progress(self, self._record(journal, outcomes, last))
                stopping = distributed.anywhere(bool(signals))
                if self.done % train.checkpoint_every == 0 or last or stopping:
                    self.save(journal)
                self.tell("step_done")
                if stopping and not last:
                    return "stopped"
        return "done"

    def step(self, step: int, batches: Mapping[str, Batch]) -> dict[str, Outcome]:
        """Encode, predict, compare, back-propagate, follow: one step of the optimizer."""
        outcomes = self.forward_backward(step, batches)
        self.norm = nn.utils.get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        if not self.norm.isfinite():  # the one read of the device in a step
            self._explain(step, batches)
        if outcomes:
            if self.study.train.clip is not None:
                nn.utils.clip_grads_with_norm_(self.parameters, self.study.train.clip, self.norm)
            self.optimizer.set(step)
            self.optimizer.optimizer.step()
            self.stack.after_step(step, outcomes)
            distributed.follow_first(self.buffers)
        return outcomes

    def forward_backward(self, step: int, batches: Mapping[str, Batch]) -> dict[str, Outcome]:
        """The gradient of the whole batch's loss, on every process."""
        seed_default_generators(self.study.seed, "step", step, distributed.rank())
        self.optimizer.optimizer.zero_grad(set_to_none=True)
        parts = accumulate.parts(batches, self.study.train.accumulate)
        outcomes = accumulate.together([self._backward(step, part, len(parts)) for part in parts])
        if outcomes:
            distributed.average_gradients(self.parameters)
        return outcomes

    def _backward(self, step: int, batches: Mapping[str, Batch], count: int) -> dict[str, Outcome]:
        """One of `count` parts of a batch."""
        with self.precision():
            outcomes = self.stack(batches, step)
        if outcomes:
            (self.stack.loss(outcomes, step) / count).backward()  # type: ignore[no-untyped-call]
        return outcomes

    # --- what is written down ---

    def tell(self, hook: str, **facts: Any) -> None:
        """A lifecycle hook of every plugin, in the process that writes."""
        if distributed.rank() == 0:
            self.registry.call(hook, self.say, run=self.run.path, step=self.done, **facts)

    def _begin(self, journal: Journal | Unwritten) -> None:
        """Before the first step: how the levels look untrained."""
        if self.done == 0:
            self._look()
            journal.metrics(0, self.look.metrics)
            journal.event("verdicts", 0, verdicts=self.look.verdicts, spectra=self.look.spectra)
            self._sound(journal, {})

    def _look(self) -> None:
        seed_default_generators(self.study.seed, "look", self.done)
        self.look = self.monitor.look(self.done, settled=self.done >= SETTLED * self.study.train.steps)

    def _sound(self, journal: Journal | Unwritten, before: Mapping[str, str]) -> None:
        """Says of each level that has collapsed since the look before why it has, and stops where the study wants that."""
        alarms = self.monitor.alarms(self.look, before, self.done)
        for alarm in alarms:
            last = self._last_healthy()
            journal.event("alarm", self.done, **alarm.facts(), healthy=last.name if last else None)
            advice = f"\n  the last checkpoint before any level collapsed: {last}" if last else ""
            self.say(f"step {self.done}: {alarm}{advice}")
        if alarms and self.study.train.alarm == "stop":
            raise Halt("collapsed")

    def looked(self) -> dict[str, float]:
        """The diagnostics of where training stands."""
        if not self.look.metrics:
            self._look()
        return self.look.metrics

    def probed(
        self, only: str | None, held: str = "test", untrained: bool = True
    ) -> tuple[dict[str, float], list[Callable[[Any], None]]]:
        """What the probes say of the stack on a held-out split, beside the same stack before training where that is asked for."""
        fresh = self._untrained() if untrained else None
        seed_default_generators(self.study.seed, "probes")
        with distributed.alone():  # what one process does, the others do not answer
            return evaluate(self.study, self.stack, fresh, self.sources, self.device, only, held)

    def _untrained(self) -> Stack | None:
        """The stack as training began with it; none where the run is gone whose weights it had."""
        fresh = new_stack(self.study, {label: source.dataset for label, source in self.sources.items()}, self.device)
        try:
            load_weights(self.study, fresh, self.say)
        except Mistake as mistake:
            self.say(f"nothing is said of the stack before training: {mistake}")
            return None
        return fresh

    @property
    def clocks(self) -> dict[str, int]:
        """Base ticks between two steps of each level."""
        return {label: self.stack.composer.spec(label, node.source).clock for label, node in self.stack.nodes.items()}

    @property
    def samples(self) -> int:
        """How many samples a step reads."""
        return sum(source.keys.batch for source in self.sources.values())

    def _record(self, journal: Journal | Unwritten, outcomes: Mapping[str, Outcome], last: bool) -> dict[str, float]:
        """One record of this step, read from the device at once."""
        before = self.look.verdicts
        named = {"gradient_norm": self.norm}
        for level, outcome in outcomes.items():
            named |= {f"loss/{level}/{term}": value for term, value in outcome.terms.items()}
            named |= {f"energy/{level}": outcome.energy.mean(), f"trivial/{level}": outcome.trivial.mean()}
            named |= {f"logs/{level}/{name}": value for name, value in outcome.logs.items()}
        values = read_once(named)
        values["lr"] = float(self.optimizer.optimizer.param_groups[0]["lr"])
        if self.done % self.study.train.diagnose_every == 0 or last:
            self._look()
            values |= self.look.metrics
            if before != self.look.verdicts or last:
                journal.event("verdicts", self.done, verdicts=self.look.verdicts, spectra=self.look.spectra)
        journal.metrics(self.done, values | self._probed_meanwhile())
        self._sound(journal, before)
        return values

    def _probed_meanwhile(self) -> dict[str, float]:
        """`probe/<label>/valid_<score>`, where the study asks for it at this step."""
        every = self.study.evaluate.every
        if every is None or self.done % every or distributed.rank():
            return {}
        scores = self.probed(None, "valid", untrained=False)[0]
        return {"/valid_".join(name.rsplit("/", 1)): value for name, value in scores.items()}

    # --- what is kept ---

    def save(self, journal: Journal | Unwritten) -> None:
        """A checkpoint of everything that the next step depends on."""
        if distributed.rank() == 0:
            tensors, facts = self.state()
            facts["records"] = journal.mark()["n"]
            spare = None if _is_healthy(facts) else self._last_healthy()
            path = checkpoint.save(self.run.checkpoints, self.done, tensors, facts, self.study.train.keep, spare)
            self.tell("checkpoint_saved", checkpoint=path)
        self.saved = self.done

    def _last_healthy(self) -> Path | None:
        """The newest checkpoint at which no level had been seen to have collapsed."""
        return checkpoint.newest_where(self.run.checkpoints, self.done, _is_healthy)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Parameters and buffers, the optimizer's moments, how each level was at the start, and what was last seen of it."""
        tensors = {f"model/{name}": tensor for name, tensor in unique_state(self.stack).items()}
        moments, skeleton = checkpoint.flatten(self.optimizer.optimizer.state_dict()["state"], "optimizer")
        facts = {"optimizer": skeleton, "initial": self.monitor.initial, "verdicts": self.look.verdicts}
        return tensors | moments, facts

    def restore(self, saved: checkpoint.Checkpoint) -> int:
        """The state of a checkpoint, whose next step is then the next here. How many metrics records the journal had."""
        load_state(self.stack, saved.model, str(saved.path))
        own = self.optimizer.optimizer.state_dict()
        try:
            moments = checkpoint.unflatten(saved.facts["optimizer"], saved.tensors)
            initial, verdicts, records = (saved.facts[name] for name in ("initial", "verdicts", "records"))
        except KeyError as error:
            raise Mistake(f"{saved.path} does not hold {error}, without which nothing can go on") from None
        self.optimizer.optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})
        self.monitor.initial, self.look = dict(initial), Look({}, dict(verdicts), {})
        self.done = self.saved = saved.step
        return int(records)

    def _explain(self, step: int, batches: Mapping[str, Batch]) -> None:
        """Does the step again, to say where it stopped being finite."""
        outcomes = self.forward_backward(step, batches)
        bad = [
            f"term {term!r} of level {level!r} is {value.item()}"
            for level, outcome in outcomes.items()
            for term, value in outcome.terms.items()
            if not value.isfinite()
        ]
        named = [name for name, parameter in self.stack.named_parameters() if _not_finite(parameter.grad)]
        if not bad:
            bad = ["every term is finite, but " + (f"the gradient of {named[0]} is not" if named else "too large")]
        raise Diverged(f"step {step + 1}: the gradient is not finite, and the weights were left as they are. {'; '.join(bad)}")


def _is_healthy(facts: Mapping[str, Any]) -> bool:
    return not any(map(collapsed, facts.get("verdicts", {}).values()))


def kept_buffers(stack: Stack) -> list[Tensor]:
    """What a checkpoint keeps beside parameters."""
    learned = {id(parameter) for parameter in stack.parameters()}
    return [tensor for tensor in stack.state_dict(keep_vars=True).values() if id(tensor) not in learned]


def _not_finite(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(gradient.isfinite().all())


def read_once(named: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars on a device -> numbers, by one transfer: their means over the processes that train together."""
    values = torch.stack([value.detach().to(torch.float32).reshape(()) for value in named.values()])
    means = distributed.sum_ranks(values) / distributed.world()
    return dict(zip(named, means.tolist(), strict=True))


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C are noted, so that the step can end and be saved; a second one acts at once."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM stops whatever is done as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- the whole of it --------------------------------------------------------------------------------------------------

Progress = Callable[[Trainer, Mapping[str, float]], None]
Draw = Callable[[Result], object]


def train(
    study: Study,
    run: runs.Run,
    registry: Registry,
    resume: bool,
    say: Callable[[str], None],
    progress: Progress,
    draw: Draw,
    held: str = "test",
) -> Result:
    """Trains in the folder of a run, evaluates at the end on the split `held`, and leaves a journal that says all of it."""
    begun = time.monotonic()
    with interruptible(), written(run) as journal:
        trainer = Trainer(study, run, registry, say)
        _enter(trainer, journal, resume)
        result = Result("failed", run.path, trainer.done, trainer.clocks)
        try:
            result.outcome = trainer.train(journal, progress)
            if result.outcome == "done":
                _evaluated(trainer, journal, result, held)
        except Halt as halt:
            result.outcome, result.metrics = halt.outcome, trainer.looked()
        except KeyboardInterrupt:
            result.outcome = "stopped"
        except BaseException as error:
            _finished(trainer, journal, "failed", error=f"{type(error).__name__}: {error}")
            raise
        result.step, result.verdicts, result.seconds = trainer.saved, trainer.look.verdicts, time.monotonic() - begun
        if result.metrics and distributed.rank() == 0:
            draw(result)
        _finished(trainer, journal, result.outcome)
    return result


@contextmanager
def written(run: runs.Run) -> Iterator[Journal | Unwritten]:
    """The run's journal. One process writes in the folder, and nobody else trains there meanwhile."""
    if distributed.rank():
        yield Unwritten()
        return
    with run.locked(), closing(Journal(run.journal)) as journal:
        yield journal


def _enter(trainer: Trainer, journal: Journal | Unwritten, resume: bool) -> None:
    """From the newest intact checkpoint where one is asked for; the metrics after it will be measured again."""
    if resume and distributed.from_first(lambda: _left_something(trainer.run, journal)):
        saved = checkpoint.newest(trainer.run.checkpoints, trainer.say)
        journal.rewind({"n": trainer.restore(saved)})
        trainer.say(f"resuming {trainer.run.path} after step {trainer.done}")
        for change in _changes(trainer):
            trainer.say(change)
    else:
        load_weights(trainer.study, trainer.stack, trainer.say)
        trainer.save(journal)
        if resume:
            trainer.say(f"{trainer.run.path} ended before anything was saved: from the first step")
    journal.event("resumed" if resume else "started", trainer.done, **circumstances(trainer.device))
    trainer.tell("run_started", study=trainer.study.resolved())


def circumstances(device: torch.device) -> dict[str, Any]:
    """What the last bits of a result depend on, beside the study."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "device": chip, "threads": torch.get_num_threads(), "processes": distributed.world()}


def _changes(trainer: Trainer) -> Iterator[str]:
    """What of that is not as it was when the run was last trained."""
    entries = [record for record in read(trainer.run.journal) if record.get("event") in ("started", "resumed")]
    before = entries[-1] if entries else {}
    for name, now in circumstances(trainer.device).items():
        if before.get(name, now) != now:
            yield f"{name} was {before[name]} and is {now}: the result may differ in its last bits from an uninterrupted one"


def _left_something(run: runs.Run, journal: Journal | Unwritten) -> bool:
    """Whether there was ever a checkpoint: the first one is saved before anything is measured."""
    return journal.mark()["n"] > 0 or any(run.checkpoints.glob("step-*"))


def _finished(trainer: Trainer, journal: Journal | Unwritten, outcome: str, **facts: str) -> None:
    journal.event("finished", trainer.done, outcome=outcome, **facts)
    trainer.tell("run_finished", outcome=outcome)


def _evaluated(trainer: Trainer, journal: Journal | Unwritten, result: Result, held: str) -> None:
    """The last diagnostics, and what the probes say."""
    result.metrics = trainer.looked()  # in every process: preventions may ask all of them
    result.verdicts, result.effects = trainer.look.verdicts, trainer.monitor.effects(trainer.done)
    journal.event("effects", trainer.done, effects={level: plain(found) for level, found in result.effects.items()})
    if distributed.rank() == 0:
        scores, result.draws = trainer.probed(None, held)
        journal.metrics(trainer.done, scores)
        result.metrics = result.metrics | scores
        trainer.tell("evaluated", metrics=scores)


def evaluate_run(
    study: Study, run: runs.Run, registry: Registry, probe: str | None, say: Callable[[str], None], draw: Draw
) -> Result:
    """The newest checkpoint of a run before the probes of its study; the run itself is left as it is."""
    begun = time.monotonic()
    here = replace(study, train=study.train.model_copy(update={"precision": "float32"}))  # as nothing is evaluated in less
    trainer = Trainer(here, run, registry, say)
    trainer.restore(checkpoint.newest(run.checkpoints, say))
    result = Result("done", run.path, trainer.done, trainer.clocks, metrics=trainer.looked(), verdicts=trainer.look.verdicts)
    scores, result.draws = trainer.probed(probe)
    result.metrics |= scores
    result.seconds = time.monotonic() - begun
    draw(result)
    return result
