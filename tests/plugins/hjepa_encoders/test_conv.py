"""The convolutional encoder: a step for itself, a sample for itself, and places are kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Spec, States
from hjepa_encoders.conv import Conv

SPEC = Spec(maps=((2, 32, 24),), ticks=(0, 1, 2), actions=3)


def _states(frames: Tensor) -> States:
    batch, steps = frames.shape[:2]
    return States(frames.new_zeros(batch, steps, 0, 0), torch.arange(steps).expand(batch, -1), maps=(frames,))


def _frames(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def conv() -> Conv:
    torch.manual_seed(0)
    return Conv(SPEC, width=16, base=8)


def test_one_token_a_step(conv: Conv) -> None:
    assert conv(_states(_frames(2, 3, 2, 32, 24))).tokens.shape == (2, 3, 1, 16)
    assert conv.spec == Spec(width=16, ticks=(0, 1, 2), actions=3)


def test_a_step_depends_on_that_step_alone(conv: Conv) -> None:
    """P28, to the last bit."""
    frames = _frames(2, 5, 2, 32, 24)
    changed = frames.clone()
    changed[:, 3:] = 7.0
    before, after = conv(_states(frames)).tokens, conv(_states(changed)).tokens
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.isclose(before[:, 3:], after[:, 3:]).all(-1).any()


def test_no_sample_sees_another(conv: Conv) -> None:
    frames = _frames(4, 2, 2, 32, 24)
    torch.testing.assert_close(conv(_states(frames)).tokens[1:2], conv(_states(frames[1:2])).tokens, atol=1e-5, rtol=1e-5)


def test_training_and_evaluation_agree(conv: Conv) -> None:
    states = _states(_frames(2, 2, 2, 32, 24))
    assert torch.equal(conv.train()(states).tokens, conv.eval()(states).tokens)


def test_tokens_say_where_things_are() -> None:
    """A blob's place is a linear function of the token of an untrained encoder, on blobs that were not fitted."""
    torch.manual_seed(0)
    conv, draw = Conv(SPEC, width=64, base=8), torch.Generator().manual_seed(1)
    place = torch.stack((torch.randint(0, 27, (400,), generator=draw), torch.randint(0, 19, (400,), generator=draw)), -1)
    frames = torch.zeros(400, 1, 2, 32, 24)
    for frame, (row, column) in zip(frames, place.tolist(), strict=True):
        frame[..., row : row + 5, column : column + 5] = 1
    with torch.no_grad():
        tokens = conv(_states(frames)).tokens.flatten(1)
    design, place = torch.cat((tokens, torch.ones(400, 1)), 1).double(), place.double()
    error = place[300:] - design[300:] @ torch.linalg.lstsq(design[:300], place[:300]).solution
    assert (error.var(0) < 0.35 * place[300:].var(0)).all()


def test_shrinking_weights_shrink_the_token(conv: Conv) -> None:
    states = _states(_frames(2, 2, 2, 32, 24))
    before = conv(states).tokens
    with torch.no_grad():
        conv.out.weight *= 0.01
    torch.testing.assert_close(conv(states).tokens, 0.01 * before)


def test_layers_are_the_stages(conv: Conv) -> None:
    features = conv(_states(_frames(2, 3, 2, 32, 24)), layers=("stage3", "stage1"))
    assert {name: layer.shape for name, layer in features.layers.items()} == {
        "stage1": (2, 3, 16 * 12, 8),
        "stage3": (2, 3, 4 * 3, 32),
    }


def test_layers_keep_samples_and_steps_apart(conv: Conv) -> None:
    frames = _frames(3, 2, 2, 32, 24)
    whole = conv(_states(frames), layers=("stage2",)).layers["stage2"]
    alone = conv(_states(frames[1:2, :1]), layers=("stage2",)).layers["stage2"]
    torch.testing.assert_close(whole[1:2, :1], alone, atol=1e-5, rtol=1e-5)


def test_an_unknown_layer_is_refused_with_those_that_exist(conv: Conv) -> None:
    with pytest.raises(ValueError, match="no layer stage9; it has stage1, stage2, stage3"):
        conv(_states(_frames(1, 1, 2, 32, 24)), layers=("stage1", "stage9"))


def test_tokens_without_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="latent_mlp"):
        Conv(Spec(width=8))


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (32, 32)])
def test_any_size_of_image(size: tuple[int, int]) -> None:
    assert Conv(Spec(maps=((3, *size),)))(_states(_frames(1, 1, 3, *size))).tokens.shape == (1, 1, 1, 64)


def test_black_images_and_autocast_stay_finite(conv: Conv) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        tokens = conv(_states(torch.zeros(1, 2, 2, 32, 24))).tokens
    tokens.float().square().sum().backward()
    assert tokens.isfinite().all() and all(weight.grad.isfinite().all() for weight in conv.parameters())


@pytest.mark.parametrize("pool", [True, False])
def test_pooled_it_says_what_is_there_and_not_where(pool: bool) -> None:
    """A patch far from the borders, a multiple of the encoder's own stride away."""
    torch.manual_seed(0)
    conv = Conv(Spec(maps=((1, 48, 48),)), width=8, base=4, stages=2, pool=pool)
    frames = torch.zeros(2, 1, 1, 48, 48)
    frames[0, 0, 0, 12:18, 16:22] = frames[1, 0, 0, 24:30, 20:26] = _frames(6, 6)
    first, second = conv(_states(frames)).tokens
    assert torch.allclose(first, second, atol=1e-5) == pool
    assert conv.out.in_features == (8 if pool else 8 * 12 * 12)


def test_smooth_it_changes_little_where_the_image_moves_a_pixel() -> None:
    changes = {}
    for smooth in (False, True):
        torch.manual_seed(0)
        conv = Conv(Spec(maps=((1, 32, 32),)), width=16, base=8, smooth=smooth, pool=True)
        frames = torch.zeros(40, 1, 1, 32, 32)
        frames[..., 12:20, 12:20] = _frames(40, 1, 1, 8, 8)
        still, moved = (conv(_states(shown)).tokens.flatten(1) for shown in (frames, frames.roll(1, -1)))
        changes[smooth] = ((still - moved).norm() / (still - still.mean(0)).norm()).item()
    assert changes[True] < 0.75 * changes[False]


def test_maps_are_halved_alike_also_where_sides_are_odd() -> None:
    for smooth in (False, True):
        conv = Conv(Spec(maps=((1, 13, 9),)), width=4, base=4, stages=2, smooth=smooth)
        layers = conv(_states(_frames(2, 1, 1, 13, 9)), ["stage1", "stage2"]).layers
        assert [tokens.shape[2] for tokens in layers.values()] == [7 * 5, 4 * 3]


def test_samples_see_one_another_in_the_head_while_training_only() -> None:
    torch.manual_seed(0)
    conv = Conv(SPEC, width=16, base=8, head=12)
    frames = _frames(4, 3, 2, 32, 24)
    assert not torch.allclose(conv(_states(frames)).tokens[:2], conv(_states(frames[:2])).tokens)
    conv.eval()
    assert torch.allclose(conv(_states(frames)).tokens[:2], conv(_states(frames[:2])).tokens, atol=1e-6)
