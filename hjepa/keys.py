"""The keys of a study that are not a component's: what loader, stack, training and evaluation own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hjepa.contracts import Count, Fraction, NonNegative, Positive, Whole
from hjepa.schedules import Schedule

RANDOM, STRAIGHT, ORACLE, PLANNED = POLICIES = ("random", "straight", "oracle", "planned")
"""Who acts wherever it can be done: by chance, straight towards the goal, by plans in the world itself, by plans in what was learned."""

THIRDS = ("near", "middle", "far")
"""How tasks are called by the distance of their goals."""
TAKEN = (*THIRDS, "against")
"""Last words that the label of no way to plan may have: scores with an interval are called so, and two would have one name."""


class Keys(BaseModel):
    """A mapping of a study whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceKeys(Keys):
    """What the loader owns of every source."""

    batch: Count = Field(default=64, description="samples a step, over all processes")
    split: Literal["train", "valid", "test"] = Field(default="train", description="the samples that are trained on")
    every: Count = Field(default=1, description="a batch every so many steps; levels that read the source rest in between")
    seed: int | None = Field(default=None, description="of the source; the study's by default")


class LevelKeys(Keys):
    """What the stack owns of every level."""

    data: str | None = Field(default=None, description="the source that is read; the first by default")
    reads: str | list[str] | None = Field(
        default=None, description="a level, a batch key, or a list; the level before by default"
    )
    stride: Count = Field(default=1, description="steps of what is read between two own steps")
    window: Count | None = Field(default=None, description="steps of what is read that one own step sees; `stride` by default")
    crop: Count | None = Field(default=None, description="train on a keyed window of so many own steps")
    gradient: Literal["flow", "stop"] = Field(default="flow", description="whether gradient flows to what is read")
    frozen: bool = Field(default=False, description="never trained")
    weights: str | None = Field(default=None, description="RUN or RUN/LEVEL whose weights it starts from")
    weight: Schedule = Field(default=Schedule.of(1.0), description="of the level in the sum that is trained; may be scheduled")
    condition: str | None = Field(default=None, description="a batch key, or a level whose states condition the prediction")


class Optimizer(BaseModel):
    """A torch optimizer by name, and its own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "adamw"
    lr: Schedule = Schedule.of(1e-3)
    weight_decay: Schedule = Schedule.of(0.0)

    @property
    def options(self) -> dict[str, Any]:
        """What is neither the name nor scheduled."""
        return dict(self.model_extra or {})


class Train(Keys):
    """How the stack is trained."""

    steps: Count = Field(default=1000, description="of the optimizer")
    optimizer: Optimizer = Field(default=Optimizer(), description="a torch optimizer by name, with its options")
    groups: dict[str, dict[str, Any]] = Field(default={}, description="parameter name pattern -> optimizer options of its own")
    clip: Positive | None = Field(default=None, description="largest norm of the gradient")
    accumulate: Count = Field(
        default=1, description="parts that a batch is computed in; statistics over the batch are of each part"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of what is computed while training; weights stay float32"
    )
    compile: bool = Field(default=False, description="compile transformer blocks: slow to start, faster on a GPU")
    log_every: Count = Field(default=10, description="steps between two journal records")
    diagnose_every: Count = Field(default=20, description="steps between two looks at collapse, on held-out samples")
    checkpoint_every: Count = Field(default=100, description="steps between two checkpoints")
    keep: int = Field(default=2, ge=2, description="checkpoints that are kept")
    workers: Whole = Field(default=0, description="processes that read data; the result does not depend on it")
    alarm: Literal["warn", "stop"] = Field(default="warn", description="what happens when a level is seen to have collapsed")
    device: str = Field(default="auto", description="auto, cpu or cuda")
    track: bool = Field(default=True, description="mirror the journal to MLflow")


class Evaluate(Keys):
    """What probes look at."""

    samples: Count = Field(default=1024, description="of the train split, to fit on, and at most as many of the test split")
    batch: Count = Field(default=128, description="samples encoded at once")
    every: Count | None = Field(default=None, description="steps between two rounds of the probes on `valid` while training")


class Tasks(Keys):
    """Tasks that a world draws: those of another seed are others."""

    seed: int = Field(default=0, description="of the tasks; that of the study has no part in them")
    count: Count = Field(default=50, description="how many there are")
    nearest: NonNegative = Field(default=0.0, description="how far from its start a goal is at least, as the world measures")
    furthest: Positive | None = Field(default=None, description="how far it is at most")


class CostKeys(Keys):
    """What planning owns of every cost."""

    level: str = Field(description="whose states it sees; `world` for the world itself")
    weight: float = Field(default=1.0, description="of the cost in the sum")


class WayKeys(Keys):
    """A way to plan: with which model, how far ahead, and how often anew."""

    horizon: dict[str, Count] = Field(
        default={}, description="the levels that plan, from the lowest to the highest, and how many own steps far"
    )
    exact: list[str] = Field(
        default=[], description="levels of `horizon` whose model is the world itself, while they perceive as they have learned"
    )
    oracle: dict[Count, Count] = Field(
        default={}, description="the world itself as the model: its steps in one step of a level -> how many of these far"
    )
    reach: Fraction = Field(
        default=1.0, gt=0, description="of all that can be done, how much levels plan with, around the middle"
    )
    replan: Count = Field(default=1, description="steps of the world between two plans")


class PlanKeys(WayKeys):
    """How a stack acts: what all ways to plan share, and the first of them."""

    tasks: str | Tasks = Field(default=Tasks(), description="a file of tasks, or which are drawn")
    steps: Count = Field(default=100, description="steps of the world that a task may take")
