"""A level has collapsed: why, in words, and what can be done.

    what a look found -> Facts (what the level reads, what protects it, what each term does to it) -> Alarm

The causes are tried in order, from what comes from outside the level to what its own terms do. They rest on measurements of the
moment, not on names: whether what the level reads varies at all, whether a level that it reads has collapsed, and whether any
term keeps it apart (`hjepa.effects`), and how strongly beside those that pull it together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hjepa.collapse import collapsed
from hjepa.effects import Effect, balance, plain
from hjepa.verdicts import kind_of

VARIES = 0.01
"""Input varies less than this share of its scale from sample to sample: there is nothing to tell apart."""

ENOUGH = 3.0
"""A term that keeps a level apart with less than so many times the strength that pulls it together is too weak. At rest both
are equally strong, wherever the level has come to rest."""


@dataclass(frozen=True)
class Facts:
    """What is known of a level at the moment when it is seen to have collapsed."""

    verdict: str
    energy_left: float
    """Its energy, as a share of that at the start."""
    varies: float
    """How much of the scale of what it reads is spread over samples and steps."""
    reads: Mapping[str, str]
    """The levels that it reads -> their verdicts."""
    effects: Mapping[str, Effect]
    """`<level>/<term>` -> what the term does to this level."""
    own: tuple[str, ...] = ()
    """Those of them that come from the level's own preventions."""
    giving: str | None = None
    """The prevention that gives its targets."""
    latent: bool = False
    """Whether its prediction takes a latent variable."""


@dataclass(frozen=True)
class Alarm:
    """A level that has collapsed, and why: `cause` for programs, `words` for people."""

    level: str
    verdict: str
    cause: str
    words: str
    effects: Mapping[str, Effect] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.level}: {self.verdict}\n  {self.words}"

    def facts(self) -> dict[str, Any]:
        """As a journal holds it."""
        said = {"level": self.level, "verdict": self.verdict, "cause": self.cause, "words": self.words}
        return {**said, "effects": plain(self.effects)}


def standing(level: str, effects: Mapping[str, Effect]) -> str:
    """One line: what keeps a level apart, and what pulls it together."""
    push, pull = balance({name: effect.spread for name, effect in effects.items()})
    sides = [(push, "kept apart by"), (pull, "pulled together by")]
    said = [f"{does} {', '.join(f'{name} ({value:.2g})' for name, value in side.items())}" for side, does in sides if side]
    return f"{level}: {'; '.join(said) or 'no term acts on its spread'}"


def sounded(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The levels that have collapsed since the look before, or otherwise than then."""
    return [level for level, words in now.items() if collapsed(words) and kind_of(words) != kind_of(before.get(level, ""))]


def raised(level: str, facts: Facts) -> Alarm:
    """The alarm, with the first cause that holds."""
    cause, because = _cause(facts)
    fell = "its prediction loss fell meanwhile" if facts.energy_left < 0.5 else ""
    fell = f"{fell} to {100 * facts.energy_left:.2g} % of its start, which is no evidence of learning; " if fell else ""
    return Alarm(level, facts.verdict, cause, f"{fell}cause: {because}", facts.effects)


def _cause(facts: Facts) -> tuple[str, str]:
    dead = [name for name, words in facts.reads.items() if collapsed(words)]
    if facts.verdict.startswith("diverged"):
        return "diverged", "its states are not finite any more; a lower learning rate, or train.clip, may keep them so"
    if dead:
        return "below", f"what it reads has collapsed first: {' and '.join(dead)}; see there"
    if facts.varies < VARIES:
        share = f"{100 * facts.varies:.2g} %"
        return "input", f"what it reads hardly varies: its spread is {share} of its scale, so there is nothing to tell apart"
    if facts.verdict.startswith("energy"):
        return _of_energy(facts)
    if facts.verdict.startswith("dimensional"):
        return _of_directions(facts)
    return _of_spread(facts)


def _of_energy(facts: Facts) -> tuple[str, str]:
    if facts.latent:
        return "latent", (
            "the latent variable carries everything: whatever the target is, some z reaches it, so nothing has to be predicted; "
            "make z narrower, or what it costs higher"
        )
    return "blind", "the prediction does not depend on what it is made from: it is the same guess for every sample"


def _of_spread(facts: Facts) -> tuple[str, str]:
    push, pull = balance({name: effect.spread for name, effect in facts.effects.items()})
    # A term of its own that asks for spread, however faintly, is no other kind of term.
    push = push or {name: facts.effects[name].spread for name in facts.own if facts.effects[name].spread > 0}
    if push:
        return _outweighed(push, pull, "keeps it apart")
    if facts.own:
        return "helpless", (
            f"nothing keeps it apart: {_names(facts.own)} is smallest where everything is the same, or has no gradient here; "
            "add a prevention that asks for spread"
        )
    if facts.giving:
        return "targets", (
            f"only the targets of {facts.giving} protect it, which slow collapse down and do not exclude it; "
            "a predictor of its own, a lower learning rate, or a prevention that asks for spread may"
        )
    return "unprotected", "no prevention acts on this level; add one to its list"


def _of_directions(facts: Facts) -> tuple[str, str]:
    push, pull = balance({name: effect.directions for name, effect in facts.effects.items()})
    own = {name: strength for name, strength in push.items() if name in facts.own}
    if own and sum(own.values()) < ENOUGH * sum(pull.values()):
        return _outweighed(own, pull, "spreads it over directions")
    said = f"{_names(facts.own)} ask for spread at most" if facts.own else "no prevention acts on this level"
    return "one_direction", (
        f"nothing spreads it over several directions: {said}; add a term that decorrelates dimensions, "
        "and let it look at all of them (a projector may be too narrow)"
    )


def _outweighed(push: Mapping[str, float], pull: Mapping[str, float], does: str) -> tuple[str, str]:
    for_it, against = sum(push.values()), sum(pull.values())
    first = next(iter(push))
    if for_it < ENOUGH * against:
        share = f"{for_it / against:.2g} times the strength of {_names(tuple(pull))}, which pulls it together"
        return "weak", f"{first} {does} with {share}: its weight is too small"
    return "stuck", (
        f"{first} {does}, much more strongly than anything pulls it together, and yet it has collapsed: "
        "the learning rate may be too high, or its units dead"
    )


def _names(names: tuple[str, ...]) -> str:
    return " and ".join(names)
