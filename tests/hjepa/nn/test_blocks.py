"""Transformer blocks: what they are at the start, what they cache, and that the initial weights are those that were meant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hjepa.nn import MLP, Block, SelfAttention, linear, rotation


def _tokens(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _awake(block: nn.Module) -> nn.Module:
    """With weights that are nowhere 0, so that nothing is hidden by a closed gate."""
    torch.manual_seed(1)
    for weight in block.parameters():
        weight.data += 0.3 * torch.randn(weight.shape)
    return block


def test_linear_keeps_the_variance() -> None:
    torch.manual_seed(0)
    layer = linear(400, 300, scale=0.5)
    assert layer(_tokens(200, 400)).std().item() == pytest.approx(0.5, rel=0.05)
    assert not layer.bias.any()


@pytest.mark.parametrize("depth", [1, 8])
def test_residual_projections_are_scaled_by_depth(depth: int) -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(128, 4, depth) for _ in range(depth))
    for block in blocks:
        assert isinstance(block, Block)
        smaller = (2 * depth) ** -0.5
        assert block.attention.out.weight.std().item() == pytest.approx(smaller * 128**-0.5, rel=0.05)
        assert block.mlp.layers[-1].weight.std().item() == pytest.approx(smaller * 512**-0.5, rel=0.05)
        assert block.attention.project.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
        assert block.mlp.layers[0].weight.std().item() == pytest.approx(128**-0.5, rel=0.05)


def test_a_guided_block_starts_as_the_identity_and_its_gates_can_open() -> None:
    block = Block(16, 2, depth=1, guide=5)
    x = _tokens(2, 3, 16)
    out = block(x, guide=_tokens(2, 1, 5))
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert block.attention_norm.read.weight.grad.any()
    assert block.mlp_norm.read.weight.grad.any()


def test_each_token_has_its_own_guide() -> None:
    block = _awake(Block(16, 2, depth=1, guide=5))
    x, guide, alone = _tokens(2, 4, 16), _tokens(2, 4, 5), torch.eye(4, dtype=torch.bool)
    other = guide.index_fill(1, torch.tensor([2]), 1.0)
    changed = (block(x, alone, guide=guide) != block(x, alone, guide=other)).any(-1)
    assert changed.tolist() == [[False, False, True, False]] * 2


def test_axes_between_batch_and_width_are_flattened() -> None:
    block = _awake(Block(16, 2, depth=1))
    x = _tokens(2, 3, 4, 16)
    torch.testing.assert_close(block(x).flatten(1, 2), block(x.flatten(1, 2)))


def test_extending_equals_doing_it_at_once() -> None:
    block = _awake(Block(16, 2, depth=1, guide=5))
    x, guide = _tokens(2, 6, 16), _tokens(2, 6, 5)
    by, mask = rotation(torch.arange(6)[:, None], 8), torch.ones(6, 6, dtype=torch.bool).tril()
    first, past = block.extend(x[:, :4], None, mask[:4, :4], by[:4], guide[:, :4])
    second, past = block.extend(x[:, 4:], past, mask[4:], by[4:], guide[:, 4:])
    torch.testing.assert_close(torch.cat((first, second), 1), block(x, mask, by, guide), atol=1e-4, rtol=1e-4)
    assert past[0].shape == past[1].shape == (2, 2, 6, 8)


@pytest.mark.parametrize("some", [slice(2, None), torch.tensor([4, 0, 3])])
def test_some_tokens_alone_are_what_they_are_among_all(some: slice | Tensor) -> None:
    """Their values, and the gradients of weights and of all tokens."""
    block = _awake(Block(16, 2, depth=1))
    x, by, mask = _tokens(2, 6, 16).requires_grad_(), rotation(torch.arange(6)[:, None], 8), _tokens(6, 6).abs() < 1
    mask |= torch.eye(6, dtype=torch.bool)
    both = block(x, mask, by)[:, some], block.of_some(x, some, mask[some], by)
    torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)
    leaves = [x, *block.parameters()]
    gradients = [torch.autograd.grad(one.square().mean(), leaves) for one in both]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_without_positions_tokens_are_a_set() -> None:
    block = _awake(Block(16, 4, depth=1))
    x, order = _tokens(2, 6, 16), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(block(x)[:, order], block(x[:, order]), atol=1e-4, rtol=1e-4)


def test_dropout_is_of_both_branches_and_of_training_alone() -> None:
    block, x = Block(16, 2, depth=1, dropout=1.0), _tokens(1, 3, 16)
    assert torch.equal(block.train()(x), x)
    assert not torch.isclose(block.eval()(x), x).any(-1).all()


def test_runs_under_autocast() -> None:
    block = _awake(Block(16, 2, depth=1, guide=5))
    with torch.autocast("cpu", torch.bfloat16):
        out = block(_tokens(1, 3, 16), by=rotation(torch.arange(3)[:, None], 8), guide=_tokens(1, 1, 5))
    out.float().sum().backward()
    assert out.isfinite().all() and all(weight.grad.isfinite().all() for weight in block.parameters())


def test_depth_of_an_mlp() -> None:
    assert [layer.weight.shape for layer in MLP(3, 7, 2, depth=2).layers[::2]] == [(7, 3), (7, 7), (2, 7)]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width of 10 cannot be shared by 4 heads"):
        SelfAttention(10, 4)
