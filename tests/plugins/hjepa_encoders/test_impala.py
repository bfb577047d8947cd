"""The residual network: one token a step or one a place, each step for itself, at any stride."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Spec, States
from hjepa_encoders.impala import Impala

SPEC = Spec(maps=((2, 20, 16),), ticks=(0, 1, 2), actions=3)


def _states(frames: Tensor) -> States:
    batch, steps = frames.shape[:2]
    return States(frames.new_zeros(batch, steps, 0, 0), torch.arange(steps).expand(batch, -1), maps=(frames,))


def _frames(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _made(spec: Spec = SPEC, **options: object) -> Impala:
    torch.manual_seed(0)
    return Impala(spec, **({"width": 8, "channels": (4, 6)} | options))  # type: ignore[arg-type]


@given(
    sides=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    patch=st.integers(1, 5),
    channels=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    spatial=st.booleans(),
)
def test_any_size_of_image_and_the_spec_says_what_comes(
    sides: tuple[int, int], patch: int, channels: tuple[int, ...], spatial: bool
) -> None:
    spec = Spec(maps=((3, *sides),), ticks=(0, 1), actions=2)
    encoder = _made(spec, patch=patch, channels=channels, spatial=spatial)
    tokens = encoder(_states(_frames(2, 2, 3, *sides))).tokens
    stride = patch * 2 ** len(channels)
    grid = tuple(-(-side // stride) for side in sides) if spatial else ()
    assert encoder.spec == Spec(width=8, grid=grid, ticks=(0, 1), actions=2)
    assert tokens.shape == (2, 2, encoder.spec.tokens, 8) and tokens.isfinite().all()


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("patch", [1, 3])
def test_a_step_and_a_sample_depend_on_themselves_alone(patch: int, spatial: bool) -> None:
    """P28, to the last bit."""
    encoder, frames = _made(patch=patch, spatial=spatial), _frames(3, 4, 2, 20, 16)
    changed = frames.clone()
    changed[1, 2] += 1
    same = (encoder(_states(frames)).tokens == encoder(_states(changed)).tokens).all(-1)
    assert not same[1, 2].any()
    same[1, 2] = True
    assert same.all()
    alone = encoder(_states(frames[1:2, 2:3])).tokens
    torch.testing.assert_close(alone, encoder(_states(frames)).tokens[1:2, 2:3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [1, 2, 3, 4])
def test_every_pixel_is_seen(patch: int) -> None:
    frames = _frames(1, 1, 2, 13, 10).requires_grad_()
    encoder = _made(Spec(maps=((2, 13, 10),)), patch=patch, channels=(8,), width=32)
    for stage in encoder.stages.values():
        stage.pool = torch.nn.AvgPool2d(3, stride=2, padding=1)  # a maximum hides most of what it looked at
    encoder(_states(frames)).tokens.square().sum().backward()
    assert frames.grad is not None and frames.grad.abs().sum((0, 1, 2)).gt(0).all()


def test_a_place_sees_what_is_around_it_in_the_order_of_the_grid() -> None:
    spec = Spec(maps=((1, 64, 96),))
    encoder = _made(spec, channels=(4,), patch=4, spatial=True)
    frames = torch.zeros(1, 1, 1, 64, 96)
    still = encoder(_states(frames)).tokens
    frames[..., 40:44, 68:72] = 1
    moved = (encoder(_states(frames)).tokens - still).abs().sum(-1).view(encoder.spec.grid)
    assert encoder.spec.grid == (8, 12)
    assert moved.argmax() // 12 in (4, 5, 6) and moved.argmax() % 12 in (8, 9)
    assert not moved[:, :3].any()


def test_places_are_kept_in_one_token() -> None:
    """A dot elsewhere is another token, also where a mean over places would be the same."""
    encoder, frames = _made(Spec(maps=((1, 48, 48),))), torch.zeros(2, 1, 1, 48, 48)
    frames[0, ..., 16:20, 16:20] = frames[1, ..., 24:28, 24:28] = _frames(4, 4)
    first, second = encoder(_states(frames)).tokens
    assert (first - second).norm() > 0.3 * first.norm()


@pytest.mark.parametrize("spatial", [False, True])
def test_norm(spatial: bool) -> None:
    frames = _states(_frames(2, 3, 2, 20, 16))
    tokens, plain = _made(norm=True, spatial=spatial)(frames).tokens, _made(spatial=spatial)(frames).tokens
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:3]), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(tokens.shape[:3]), atol=0.1, rtol=0)
    encoder = _made(spatial=spatial)
    with torch.no_grad():
        encoder.out.weight *= 0.01
    torch.testing.assert_close(encoder(frames).tokens, 0.01 * plain, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("patch", [1, 4])
def test_what_passes_neither_grows_nor_fades_at_the_start(patch: int) -> None:
    torch.manual_seed(0)
    encoder = Impala(Spec(maps=((3, 64, 64),)), width=64, patch=patch, spatial=True)
    tokens = encoder(_states(torch.randn(8, 1, 3, 64, 64))).tokens
    assert 0.5 < tokens.std() < 4


def test_branches_are_there_from_the_start_and_small() -> None:
    torch.manual_seed(0)
    encoder = Impala(Spec(maps=((3, 8, 8),)), channels=(32, 32, 32))
    x = torch.randn(8, 32, 12, 12)
    added = encoder.stages["stage2"].blocks[0](x) - x
    assert 0.6 < added.square().mean() / x.square().mean() * 6 < 1.4


def test_a_token_is_made_of_what_is_positive_in_the_last_stage() -> None:
    frames = _states(_frames(2, 2, 2, 20, 16))
    for spatial in (False, True):
        encoder = _made(spatial=spatial)
        features = encoder(frames, layers=("stage2",))
        x = features.layers["stage2"].relu()
        torch.testing.assert_close(features.tokens, encoder.out(x if spatial else x.flatten(2)[:, :, None]))


def test_layers_are_the_stages() -> None:
    encoder, frames = _made(), _frames(3, 2, 2, 20, 16)
    layers = encoder(_states(frames), layers=("stage2", "stage1")).layers
    assert {name: layer.shape for name, layer in layers.items()} == {"stage1": (3, 2, 80, 4), "stage2": (3, 2, 20, 6)}
    alone = encoder(_states(frames[1:2, :1]), layers=("stage1",)).layers["stage1"]
    torch.testing.assert_close(layers["stage1"][1:2, :1], alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="impala has no layer stage3; it has stage1, stage2"):
        encoder(_states(frames), layers=("stage3",))


@pytest.mark.parametrize("options", [{}, {"patch": 2, "spatial": True}, {"norm": True}])
def test_black_images_and_autocast_stay_finite_and_everything_learns(options: dict[str, object]) -> None:
    encoder = _made(**options)
    with torch.autocast("cpu", torch.bfloat16):
        black, tokens = (encoder(_states(frames)).tokens for frames in (torch.zeros(1, 2, 2, 20, 16), _frames(2, 2, 2, 20, 16)))
    (black.float().sum() + (tokens.float() * torch.arange(8)).sum()).backward()
    assert black.isfinite().all() and tokens.isfinite().all()
    assert all(
        weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any() for weight in encoder.parameters()
    )


def test_each_channel_is_normed_by_its_own_pixels() -> None:
    frames = _frames(2, 2, 2, 20, 16)
    mean, std = (0.5, -1.0), (2.0, 0.1)
    normed = (frames - torch.tensor(mean).view(2, 1, 1)) / torch.tensor(std).view(2, 1, 1)
    weights = _made().state_dict()
    encoder = _made(pixel_mean=mean, pixel_std=std)
    encoder.load_state_dict(weights)
    plain = _made()
    plain.load_state_dict(weights)
    torch.testing.assert_close(encoder(_states(frames)).tokens, plain(_states(normed)).tokens)
    with pytest.raises(ValueError, match="pixel_std has 3 numbers; write one, or one for each of 2 channels"):
        _made(pixel_std=(1.0, 2.0, 3.0))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="channels is empty; write a number for each stage"):
        _made(channels=())
    with pytest.raises(ValueError, match="impala reads images"):
        _made(Spec(width=8))
