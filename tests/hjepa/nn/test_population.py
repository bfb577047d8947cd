"""What planners share: the best are kept, in their order, within bounds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hjepa.contracts import ActionSpace, Cost, Plan
from hjepa.nn import population
from hjepa.nn.population import Ranked, anywhere, around, begun, judged, near, ranked, reach, within
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


RING = 3 + 2 * torch.stack([torch.arange(12).mul(torch.pi / 6).sin(), torch.arange(12).mul(torch.pi / 6).cos()], dim=1)
AROUND = ActionSpace(RING.amin(0), RING.amax(0), RING)
"""Twelve anchors on a circle: the middle of them is far from all."""


def apart(actions: Tensor) -> Tensor:
    """How far the nearest anchor is."""
    return torch.cdist(actions.flatten(0, -2), RING).amin(1)


def test_what_is_far_from_anchors_is_drawn_towards_the_nearest_and_no_further_than_they_are_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actions = 3 + 2 * torch.randn(4, 5, 6, 2, generator=torch.Generator().manual_seed(0))
    found, spacing = near(AROUND, actions), (RING[0] - RING[1]).norm()
    assert (apart(found) <= spacing * 1.001).all() and (apart(actions) > spacing * 1.1).any()
    free = apart(actions) < spacing * 0.999
    torch.testing.assert_close(found.flatten(0, -2)[free], actions.flatten(0, -2)[free])
    nearest = torch.cdist(actions.flatten(0, -2), RING).argmin(1)
    assert torch.equal(torch.cdist(found.flatten(0, -2), RING).argmin(1)[~free], nearest[~free])
    monkeypatch.setattr(population, "PAIRS", 12 * 12)
    assert torch.equal(near(AROUND, actions), found)


def test_a_single_anchor_is_all_there_is() -> None:
    alone = ActionSpace(SPACE.low, SPACE.high, torch.tensor([[0.25, 1.0]]))
    assert (near(alone, torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))) == alone.anchors).all()


def test_the_middle_of_anchors_is_near_one() -> None:
    class Posed:
        space, batch, horizon = AROUND, 2, 3

    first = begun(Posed(), None)  # type: ignore[arg-type]
    assert first.shape == (2, 3, 2) and (apart(first) < 1.1 * (RING[0] - RING[1]).norm()).all()
    torch.testing.assert_close(reach(AROUND), torch.full((2,), 2**0.5))


def test_a_share_of_candidates_is_near_anchors_the_first_of_all_are_anchors() -> None:
    key, candidates = Key.of(0).fold(torch.arange(2)), torch.full((2, 10, 3, 2), 3.0)
    assert around(SPACE, candidates, 1.0, True, key) is candidates
    first = around(AROUND, candidates, 0.0, True, key)
    assert torch.equal(first[:, :1], candidates[:, :1]) and (apart(first[:, 1:]) == 0).all()
    for share, free in ((0.0, 10), (0.3, 7), (1.0, 0)):
        found = around(AROUND, candidates, share, False, key)
        assert torch.equal(found[:, :free], candidates[:, :free]) and (apart(found[:, free:]) < 1.1).all()


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_many_candidates_are_judged_in_parts(at_once: int) -> None:
    """P35: as if at once, and never more of them than there is room for."""

    @dataclass
    class Sum:
        at_once: int
        batch: int = 3
        most: int = 0

        def rollout(self, actions: Tensor) -> Tensor:
            self.most = max(self.most, actions.shape[0] * actions.shape[1])
            return actions

        def cost(self, trajectory: Tensor) -> Cost:
            value = trajectory.sum((2, 3))
            return Cost(value, (value > 4).float())

    candidates = torch.rand(3, 10, 4, 2, generator=torch.Generator().manual_seed(0))
    problem, whole = Sum(at_once), Sum(100)
    parts, once = judged(problem, candidates), judged(whole, candidates)  # type: ignore[arg-type]
    assert torch.equal(parts.actions, once.actions) and torch.equal(parts.cost.value, once.cost.value)
    assert problem.most <= max(3, at_once) and whole.most == 30
