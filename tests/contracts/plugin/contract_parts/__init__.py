"""Small components of systems to come, one a file: what they need of hjepa, hjepa must give to any plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    components.add("dataset", "dot", "contract_parts.dot:Dot")
    components.add("dataset", "phrases", "contract_parts.phrases:Phrases")
    components.add("encoder", "patches", "contract_parts.patches:Patches")
    components.add("encoder", "words", "contract_parts.words:Words")
    components.add("encoder", "pool", "contract_parts.pool:Pool")
    components.add("encoder", "halves", "contract_parts.pyramid:Pyramid")
    components.add("encoder", "fused", "contract_parts.fused:Fused")
    components.add("masking", "boxes", "contract_parts.boxes:Boxes")
    components.add("predictor", "fill", "contract_parts.fill:Fill")
    components.add("predictor", "markov", "contract_parts.markov:Markov")
    components.add("predictor", "drift", "contract_parts.drift:Drift")
    components.add("level", "blanks", "contract_parts.masked:Masked")
    components.add("level", "agree", "contract_parts.agree:Agree")
    components.add("level", "flowing", "contract_parts.motion:Motion")
    components.add("level", "guess", "contract_parts.guess:Guess")
    components.add("level", "unfolded", "contract_parts.unfolded:Unfolded")
    components.add("latent", "codes", "contract_parts.codes:Codes")
    components.add("macro_action", "total", "contract_parts.total:Total")
    components.add("prevention", "queue", "contract_parts.queue:Queue")
    components.add("prevention", "pairs", "contract_parts.pairs:Pairs")
    components.add("prevention", "inverse", "contract_parts.inverse:Inverse")
    components.add("prevention", "tally", "contract_parts.tally:Tally")
    components.add("planner", "by_waypoints", "contract_parts.by_waypoints:ByWaypoints")
    components.add("cost", "fence", "contract_parts.fence:Fence")
