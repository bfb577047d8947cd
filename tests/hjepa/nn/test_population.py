"""What planners share: the best are kept, in their order, within bounds."""

from __future__ import annotations

import torch

from hjepa.contracts import ActionSpace, Cost, Plan
from hjepa.nn.population import Ranked, anywhere, ranked, within
from hjepa.randomness import Key

SPACE = ActionSpace(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]))


def some(*values: float, violation: float = 0.0) -> Ranked:
    value = torch.tensor([values])
    return ranked(value[:, :, None, None].expand(1, -1, 3, 2), Cost(value, torch.full_like(value, violation)))


def test_candidates_are_ranked_by_violation_and_then_by_value() -> None:
    found = some(3.0, 1.0, 2.0)
    assert found.cost.value.tolist() == [[1, 2, 3]] and found.actions[0, :, 0, 0].tolist() == [1, 2, 3]
    both = found.beside(some(0.0, violation=1.0), 9)
    assert both.cost.value.tolist() == [[1, 2, 3, 0]] and both.cost.violation.tolist() == [[0, 0, 0, 1]]
    assert found.beside(some(1.5), 2).cost.value.tolist() == [[1, 1.5]]
    plan = both.plan()
    assert isinstance(plan, Plan) and plan.actions.shape == (1, 3, 2) and plan.cost.value.tolist() == [[1]]


def test_what_is_drawn_anywhere_is_within_bounds_or_an_anchor() -> None:
    key = Key.of(0).fold(torch.arange(50))
    drawn = anywhere(SPACE, key, "some", (20,))
    assert drawn.shape == (50, 20, 2) and torch.equal(within(SPACE, drawn), drawn)
    torch.testing.assert_close(drawn.flatten(0, 1).mean(0), torch.tensor([0.0, 2.0]), atol=0.15, rtol=0)
    anchors = torch.tensor([[0.5, 1.0], [-0.5, 3.0]])
    assert (
        (anywhere(ActionSpace(SPACE.low, SPACE.high, anchors), key, "some", (20,))[:, :, None] == anchors).all(-1).any(-1).all()
    )
