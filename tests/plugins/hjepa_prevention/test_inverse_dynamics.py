from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Here, Pair, Spec, States
from hjepa.randomness import Key
from hjepa_prevention.inverse_dynamics import InverseDynamics


def error(made: InverseDynamics, tokens: Tensor, actions: Tensor) -> Tensor:
    states = States(tokens, torch.zeros(tokens.shape[:2], dtype=torch.int64), actions=actions)
    here = Here(lambda: states, lambda: states, lambda encoder: None, Key.of(0), Key.of(0, 1), 1)
    return made.terms(Pair(tokens, tokens, tokens), here)["action"]


def built(**options: object) -> InverseDynamics:
    torch.manual_seed(0)
    return InverseDynamics(Spec(4, grid=(2,), actions=3), **options)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_reads_each_action_from_the_states_before_and_after_it() -> None:
    tokens, actions = drawn(5, 4, 2, 4), drawn(5, 3, 3, seed=1)
    for name, flat in (("joined", tokens.flatten(2)), ("mean", tokens.mean(2))):
        made = built(tokens=name, weight=2.0)
        told = torch.stack([made.read(torch.cat((flat[:, t], flat[:, t + 1]), -1)) for t in range(3)], 1)
        torch.testing.assert_close(error(made, tokens, actions), 2 * (told - actions).square().mean())


def test_actions_receive_no_gradient_and_both_states_do() -> None:
    tokens, actions = drawn(5, 2, 2, 4).requires_grad_(), drawn(5, 1, 3, seed=1).requires_grad_()
    error(built(), tokens, actions).backward()
    assert actions.grad is None
    assert (tokens.grad.abs().sum((0, 2, 3)) > 0).all()


def test_equal_states_tell_no_more_than_the_mean_action_and_moving_ones_do() -> None:
    actions = drawn(64, 4, 3, seed=1)
    moved = torch.cat((torch.zeros(64, 1, 3), actions.cumsum(1)), 1) @ drawn(3, 8, seed=2)
    reached = []
    for tokens in (torch.zeros(64, 5, 2, 4), moved.view(64, 5, 2, 4)):
        made = built(hidden=32)
        optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
        for _ in range(150):
            optimizer.zero_grad()
            error(made, tokens, actions).backward()
            optimizer.step()
        reached.append(error(made, tokens, actions).item() / actions.var().item())
    assert reached[0] > 0.95
    assert reached[1] < 0.2


def test_one_step_has_no_action_to_tell() -> None:
    assert error(built(), drawn(5, 1, 2, 4), drawn(5, 0, 3)).item() == 0


def test_a_projector_comes_before_the_states_are_joined() -> None:
    made = built(projector=(8, 5), hidden=16)
    assert made.read.layers[0].in_features == 2 * 2 * 5
    assert error(made, drawn(5, 4, 2, 4), drawn(5, 3, 3)).isfinite()


def test_a_level_without_actions_is_refused() -> None:
    with pytest.raises(ValueError, match="no actions"):
        InverseDynamics(Spec(4))
