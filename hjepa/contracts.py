"""What travels between components, and one protocol a kind. The shapes, once and for all:

    B batch    T steps at a level's clock    N tokens of a step    D width    A action width
    C H W image    S a planner's candidates    M packed tokens    R rows    K steps of a rollout

A component's options are the keyword-only parameters of its `__init__`, typed, with defaults. What it must know of its
neighbours comes as one positional `spec`, and it says what it gives in `self.spec`. An option annotated with a kind
(`Build[Encoder]`, `list[Build[Prevention]]`, `Build[Latent] | None`) is a component in the study too, and arrives as a
factory. Nobody inherits from anything here: a protocol is only the list of what is called, and when. Where somebody acts, what travels
and who takes part stand in `acting.py`, and are had from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from hjepa.acting import ActionSpace, Cost, CostTerm, Environment, Plan, Planner, PlanningProblem  # noqa: F401
from hjepa.annotations import Build, Count, Fraction, NonNegative, Positive, Whole, by_name  # noqa: F401

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hjepa.randomness import Key

# --- what travels -----------------------------------------------------------------------------------------------------

Batch = dict[str, "Tensor"]
"""Tensors by what they are: `frames (B,T,C,H,W)`, `actions (B,T-1,A)`, `label`, `position`, `flow`, `views`..., `ids (B,)`.
`NAME_valid (B,T,N)` bool says which tokens of the stream NAME are there, where samples differ in that.
"""


@dataclass(frozen=True)
class Spec:
    """What a component must know of the states that it is given, and says of those that it gives."""

    width: int = 0
    """D of each token; 0 where the states are maps only."""
    grid: tuple[int, ...] = ()
    """How the N tokens of a step lie; `()` is a single token."""
    ticks: tuple[int, ...] = (0,)
    """For each of the T steps, the base tick of the last input that it has seen."""
    actions: int = 0
    """A: how wide an action between two steps is; 0 without actions."""
    joined: int = 1
    """How many actions of what is read in windows lie side by side in one action here."""
    condition: int = 0
    """How wide the condition is; 0 without one."""
    latent: int = 0
    """How wide z, which leads to the next step as an action does, is; 0 without one."""
    vocabulary: int = 0
    """How many different words there are, where a token (D = 1, int64) is the number of a word; 0 elsewhere."""
    maps: tuple[tuple[int, int, int], ...] = ()
    """(C, H, W) of each feature map, finest first."""
    window: int = 1
    """How many steps below are folded into each step (leading axis of `grid`, leading factor of C)."""
    parts: tuple[Spec, ...] = ()
    """One spec for each stream, where several are read at once."""

    @property
    def tokens(self) -> int:
        """N."""
        return math.prod(self.grid)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.ticks)

    @property
    def clock(self) -> int:
        """Base ticks between two steps (1 where there is only one step)."""
        return self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1

    @property
    def moves_on(self) -> bool:
        """Whether every step has seen later input than the step before: no step sees its own future."""
        return all(later > earlier for earlier, later in zip(self.ticks, self.ticks[1:], strict=False))

    def giving(self, width: int, grid: tuple[int, ...] = (), maps: tuple[tuple[int, int, int], ...] = ()) -> Spec:
        """The spec of states computed from these, step by step: same ticks, actions and condition."""
        return replace(self, width=width, grid=grid, maps=maps, vocabulary=0, joined=1, window=1, parts=())

    def encoded(self, by: Spec) -> Spec:
        """The spec of what the encoder of spec `by` makes of these. Levels may share it: ticks and actions in `by` may be others'."""
        return self.giving(by.width, by.grid, by.maps)


@dataclass(frozen=True)
class States:
    """What a level, or a source, gives to those who read it."""

    tokens: Tensor
    """(B, T, N, D); N is 0 where the states are maps only, D is 0 where they are parts."""
    time: Tensor
    """(B, T) int64: the base tick of the last input that each step has seen. Need not be contiguous or equal over samples."""
    grid: tuple[int, ...] = ()
    valid: Tensor | None = None
    """(B, T, N) bool, or None where every token is valid."""
    maps: tuple[Tensor, ...] = ()
    """Feature maps (B, T, C, H, W), finest first."""
    actions: Tensor | None = None
    """(B, T-1, A): what was done between each step and the next."""
    parts: tuple[States, ...] = ()
    """One for each stream, where several are read at once."""
    doubt: Tensor | None = None
    """(B, T, N) of predicted states: how far apart predictors are that have seen different samples; None where none says it."""

    @property
    def steps(self) -> int:
        return self.time.shape[1]

    def detached(self) -> States:
        """The same states, cut from the graph."""
        return replace(
            self,
            tokens=self.tokens.detach(),
            maps=tuple(m.detach() for m in self.maps),
            actions=None if self.actions is None else self.actions.detach(),
            parts=tuple(p.detached() for p in self.parts),
        )

    def slice(self, start: int, stop: int) -> States:
        """Own steps `start` to `stop`, with the actions between them."""
        return replace(
            self,
            tokens=self.tokens[:, start:stop],
            time=self.time[:, start:stop],
            valid=None if self.valid is None else self.valid[:, start:stop],
            maps=tuple(m[:, start:stop] for m in self.maps),
            actions=None if self.actions is None else self.actions[:, start : max(start, stop - 1)],
            parts=tuple(p.slice(start, stop) for p in self.parts),
            doubt=None if self.doubt is None else self.doubt[:, start:stop],
        )

    def rows(self, index: Tensor) -> States:
        """The samples `index` (R,), which may name one several times."""
        return replace(
            self,
            tokens=self.tokens[index],
            time=self.time[index],
            valid=None if self.valid is None else self.valid[index],
            maps=tuple(m[index] for m in self.maps),
            actions=None if self.actions is None else self.actions[index],
            parts=tuple(p.rows(index) for p in self.parts),
            doubt=None if self.doubt is None else self.doubt[index],
        )


@dataclass(frozen=True)
class Features:
    """What an encoder makes of states, step by step."""

    tokens: Tensor
    """(B, T, N, D)."""
    maps: tuple[Tensor, ...] = ()
    """(B, T, C, H, W), finest first."""
    layers: Mapping[str, Tensor] = field(default_factory=dict)
    """The layers that were asked for, each (B, T, N, D)."""
    valid: Tensor | None = None
    """(B, T, N) bool, or None where every token is valid."""


@dataclass(frozen=True)
class Packed:
    """Token sets of different sizes, one after the other: never padded, never truncated."""

    values: Tensor
    """(M, D)."""
    lengths: Tensor
    """(sets,) int64, summing to M."""
    positions: Tensor
    """(M, axes) int64: where each token lies on the grid."""
    row: Tensor
    """(sets,) int64: the step that each set belongs to, counted through all samples: b * T + t."""
    family: str = ""


@dataclass(frozen=True)
class Pair:
    """What is compared, row by row, and what must stay alive."""

    prediction: Tensor
    """(..., D)."""
    target: Tensor
    """(..., D), aligned with `prediction`."""
    embedding: Tensor
    """(B, T, N, D) or (M, D): the online embeddings of the level, with gradient."""


@dataclass(frozen=True)
class Outcome:
    """What one level says of one batch."""

    energy: Tensor
    """(B, T): the energy of each prediction, unweighted."""
    trivial: Tensor
    """(B, T): the energy of the level's own baseline (copying the last state, the mean of the context, zero flow)."""
    terms: dict[str, Tensor]
    """Scalars, already weighted; their sum is back-propagated."""
    embeddings: dict[str, Tensor]
    """(R, D) each, for diagnostics."""
    shuffled: Tensor | None = None
    """(B, T): the energy where each sample has the targets of another. Only in evaluation mode: it may cost an inference of z."""
    logs: dict[str, Tensor] = field(default_factory=dict)


class Here:
    """What a level sees of one step of training. What costs something is made when it is first asked for, once."""

    def __init__(
        self,
        below: Callable[[], States],
        states: Callable[[], States],
        view: Callable[[Any], States],
        key: Key,
        step_key: Key,
        step: int,
        condition: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        self._below, self._states, self._view, self._condition = below, states, view, condition
        self.key, self.step_key, self.step = key, step_key, step
        """`key`: one a sample, `(seed, level, epoch, sample id)`; `step_key`: one a step, `(seed, level, step)`, on the CPU, so that
        drawing a shape from it waits for no device."""

    @cached_property
    def below(self) -> States:
        """What the level reads, in windows at its own clock."""
        return self._below()

    @cached_property
    def states(self) -> States:
        """The level's own states, with gradient, encoded once a step whoever asks."""
        return self._states()

    @cached_property
    def condition(self) -> Tensor | None:
        """(B, 1, C) or (B, T, C), or None."""
        return self._condition()

    def view(self, encoder: Any) -> States:
        """The level's states as that encoder would have them (a teacher, say); its own ones of a level that has none (None)."""
        return self._view(encoder)


# --- one protocol a kind ----------------------------------------------------------------------------------------------
# `optional` names the methods that a component may leave out; `one_of` those of which it needs one.


class Dataset(Protocol):
    """Where batches come from. Positional: the seed of the source."""

    kind: ClassVar[str] = "dataset"
    optional: ClassVar[tuple[str, ...]] = ()
    streams: dict[str, Spec]
    """What levels can read, the main stream first: batch key -> spec."""

    def split(self, name: str) -> Dataset:
        """The samples of `train`, `valid` or `test`; no sample is in two of them."""

    def __len__(self) -> int:
        """How many samples an epoch has."""

    def batch(self, ids: Tensor, device: torch.device) -> Batch:
        """The samples `ids` (B,), in order; a pure function of the seed and the ids."""


class Transform(Protocol):
    """Changes a batch on the device, sample by sample, by keyed random numbers; streams keep their specs. Training only."""

    kind: ClassVar[str] = "transform"

    def __call__(self, batch: Batch, key: Key) -> Batch: ...


class Encoder(Protocol):
    """States of below, in windows -> features at the same steps. Positional: the spec of below."""

    kind: ClassVar[str] = "encoder"
    spec: Spec

    def __call__(self, below: States, layers: Sequence[str] = ()) -> Features:
        """Features of the last and of the named layers. Step t is computed from step t of `below` alone."""


class MaskableEncoder(Encoder, Protocol):
    """An encoder that can look at some of its tokens alone."""

    def encode_kept(self, below: States, keep: Packed) -> Packed:
        """Features of the kept tokens alone; the others are dropped before anything mixes tokens."""


class Masking(Protocol):
    """Which tokens are context and which are targets. Positional: the spec of the tokens.

    ValueError from `__init__`, with the sum, where what is asked for could leave a family without context.
    """

    kind: ClassVar[str] = "masking"
    families: tuple[str, ...]

    def sample(self, key: Key, valid: Tensor | None = None) -> dict[str, list[Packed]]:
        """For each family `[context, targets...]`: sets of flat indices, `values` (M, 1), one for each row in order.

        `key` has one word a row (B*T,), and `valid` (B*T, N) says which tokens are there. A row's sets are a pure function of
        its own key: the same for any batch size, worker and position in the batch.
        """


class SetPredictor(Protocol):
    """Fills in what is masked. Positional: the spec of the encoder, and the families of the masking."""

    kind: ClassVar[str] = "predictor"

    def __call__(self, context: Packed, query: Packed, condition: Tensor | None = None, z: Tensor | None = None) -> Packed:
        """`query` with values (M, D): each set, any number a row, is filled in from the `context` of its row, and from no other set.

        `context` has one set a row, in order. condition (B*T, C) and z (B*T, Z) belong to rows."""


class StepPredictor(Protocol):
    """Predicts the next step. Positional: the spec of the encoder."""

    kind: ClassVar[str] = "predictor"
    optional: ClassVar[tuple[str, ...]] = ("doubt",)

    def __call__(self, states: States, condition: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """(B, T-1, N, D): the prediction of steps 1 to T-1, each from the true steps before it alone."""

    def start(self, states: States, condition: Tensor | None = None) -> Any:
        """A carry that has seen `states`: a tree of tensors with leading B (recurrent state, key-value cache, memory)."""

    def step(
        self, carry: Any, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """(B, N, D), the next step after what `carry` has seen, and the carry that has seen it too."""

    def doubt(self, carry: Any) -> Tensor:
        """(B, N): how sure it is not of the last step that it predicted, as a variance, mean over D."""


class Energy(Protocol):
    """(..., D) and (..., D) -> (...): mean over D only; 0 where both are equal. Positional: the spec of the states."""

    kind: ClassVar[str] = "energy"

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor: ...


class Prevention(Protocol):
    """Keeps a level from collapsing, by architecture (`targets`) or by a loss (`terms`). Positional: the spec of the states.

    At most one prevention of a level gives targets; the terms of all of them add up.
    """

    kind: ClassVar[str] = "prevention"
    optional: ClassVar[tuple[str, ...]] = ("bind", "targets", "terms", "after_step")
    one_of: ClassVar[tuple[str, ...]] = ("targets", "terms")

    def bind(self, encoder: Any) -> None:
        """Called once, after the level made its encoder."""

    def targets(self, here: Here) -> States:
        """What predictions are compared with; without it the level's own states, with gradient."""

    def terms(self, pair: Pair, here: Here) -> dict[str, Tensor]:
        """Scalars, weighted. Statistics over the batch go through `distributed.gather_rows` and are taken in float32."""

    def after_step(self, step: int) -> None:
        """Called after the optimizer's step, without gradient, where the level took part in it: not while its source rests."""


class Latent(Protocol):
    """What a prediction cannot know. Positional: the spec of the states."""

    kind: ClassVar[str] = "latent"
    optional: ClassVar[tuple[str, ...]] = ("logs",)
    width: int

    def infer(
        self, energy_of_z: Callable[[Tensor], Tensor], context: Tensor, target: Tensor, key: Key
    ) -> tuple[Tensor, Tensor]:
        """z (*shape, width), which makes the energy plus `penalty` small, and what it is trained with beside the energy (*shape).

        `energy_of_z` maps (*shape, width) to (*shape); z may be read from `context` and `target`, (*shape, N, D) each.
        """

    def sample(self, count: int, key: Key) -> Tensor:
        """(*key, count, width), from the prior."""

    def penalty(self, z: Tensor) -> Tensor:
        """R(z): (..., width) -> (...)."""

    def logs(self, z: Tensor) -> dict[str, Tensor]:
        """What is worth knowing of the z of a batch (how many codes are used, say), as scalars."""


class Level(Protocol):
    """One level of the stack. Positional: the spec of what it reads, in windows at its own clock.

    It gives one state for each window, whose tick is the last that the window has seen: a clip that is looked at both ways is
    one state with time as an axis of its grid. So no state has seen its own future, whatever reads it.
    Only levels that predict steps are planned with: they have `rollout`, and `start` and `step` for search one step at a time.
    """

    kind: ClassVar[str] = "level"
    optional: ClassVar[tuple[str, ...]] = ("view", "predictions", "rollout", "start", "step", "doubt", "space", "draw")
    spec: Spec
    needs: int
    """How many own steps a sample must give for the level to have something to learn."""

    def encode(self, below: States) -> States:
        """Every step of `below`, at the level's own clock. The stack calls it once a step, if anybody asks."""

    def view(self, encoder: Any, below: States) -> States:
        """`encode` by that encoder in place of the level's own; a level whose encoder reads `below` as it is leaves it out."""

    def predictions(self, below: States) -> dict[str, Tensor]:
        """What it says of the samples besides its states, (B, ...) each, by the names that the batch has for what is true."""

    def __call__(self, here: Here) -> Outcome: ...

    def rollout(
        self, start: States, actions: Tensor | None, steps: int, condition: Tensor | None = None, z: Tensor | None = None
    ) -> States:
        """`start` (B, T, N, D) continued by `steps` predicted ones (B, steps, N, D). `actions` (B, steps, A) lead to them."""

    def start(self, states: States, condition: Tensor | None = None) -> Any:
        """A carry that has seen `states`, as of a StepPredictor."""

    def step(
        self, carry: Any, action: Tensor | None = None, condition: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """The tokens (B, N, D) of the next step, and the carry that has seen it too, as of a StepPredictor."""

    def doubt(self, carry: Any) -> Tensor | None:
        """(B, N), as of a StepPredictor; none where it says nothing of it."""

    def space(self, chunk: ActionSpace) -> ActionSpace:
        """What can be done here, where `chunk` is what can be done below between two own steps; without it just that."""

    def draw(self, here: Here, figure: Any) -> None:
        """What it sees of some held-out samples, into a matplotlib figure; where nothing is drawn, there is no picture."""


class MacroAction(Protocol):
    """A chunk of lower actions -> one action of the level above. Positional: the spec of what the level reads."""

    kind: ClassVar[str] = "macro_action"
    width: int

    def __call__(self, chunk: Tensor) -> Tensor:
        """(..., A of below times stride) -> (..., width)."""

    def space(self, chunk: ActionSpace) -> ActionSpace:
        """The range of its actions, and as anchors those of chunks that it has seen: a buffer that data fill."""


class Attention(Protocol):
    """One way to compute attention on one kind of device."""

    kind: ClassVar[str] = "attention"

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor: ...

    def refuses(self, query: Tensor, mask: Any) -> str:
        """Why this back end cannot run that, and what to do; empty where it can."""


@dataclass(frozen=True)
class Observation:
    """Everything a level says of a number of samples, on the CPU, without gradient."""

    states: States
    batch: Batch


class Observer(Protocol):
    """What a probe may look at: frozen features, in evaluation mode, always the same samples of a split."""

    def observe(self, level: str, split: str, features: str = "online") -> Observation:
        """The level's states of up to `evaluate.samples` samples of a split, and their batch; `target`: as its teacher has them."""

    def predict(self, level: str, split: str, start: int, steps: int, futures: int = 0) -> States:
        """Own steps `start+1 .. start+steps` as predicted from own steps `0 .. start`; with `futures` so many of each sample, next to
        one another (n * futures, steps, N, D), whose z are drawn from the level's latent, else with z = 0.
        """

    def predictions(self, level: str, split: str) -> dict[str, Tensor]:
        """What the level says of the same samples besides its states, (n, ...) each, by name."""

    def energies(self, level: str, split: str) -> dict[str, Tensor]:
        """`energy`, `trivial` and, where the level says it, `shuffled`: (n, T) each, as in its outcome."""

    def spec(self, level: str) -> Spec: ...


class Probe(Protocol):
    """Asks what is in the states. It never sees a gradient of what it probes."""

    kind: ClassVar[str] = "probe"
    optional: ClassVar[tuple[str, ...]] = ("draw",)

    def measure(self, observer: Observer) -> dict[str, float]:
        """Scores by name."""

    def draw(self, observer: Observer, figure: Any) -> None:
        """What it found, into a matplotlib figure."""


KINDS: dict[str, tuple[type, ...]] = {}
"""Kind -> its protocols (a predictor has two)."""
for _protocol in (
    *(Dataset, Transform, Encoder, Masking, SetPredictor, StepPredictor, Energy, Prevention, Latent, Level, MacroAction),
    *(Attention, Environment, Planner, CostTerm, Probe),
):
    KINDS[_protocol.kind] = (*KINDS.get(_protocol.kind, ()), _protocol)  # type: ignore[attr-defined]
