"""The pyramid: a map at every power of two, a step and a sample each for itself, and sizes that cannot be halved are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Spec, States
from hjepa_encoders.pyramid import Pyramid, local_contrast

SPEC = Spec(maps=((2, 32, 24),), ticks=(0, 1, 2), actions=3)


def states(frames: Tensor) -> States:
    batch, steps = frames.shape[:2]
    return States(frames.new_zeros(batch, steps, 0, 0), torch.arange(steps).expand(batch, -1), maps=(frames,))


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pyramid() -> Pyramid:
    torch.manual_seed(0)
    return Pyramid(SPEC, widths=(8, 12, 16), depths=(1, 0, 2))


def test_a_map_at_every_stride_and_their_mean_as_a_token(pyramid: Pyramid) -> None:
    features = pyramid(states(drawn(2, 3, 2, 32, 24)))
    assert [tuple(one.shape) for one in features.maps] == [(2, 3, 8, 16, 12), (2, 3, 12, 8, 6), (2, 3, 16, 4, 3)]
    assert pyramid.spec == Spec(width=16, ticks=(0, 1, 2), actions=3, maps=((8, 16, 12), (12, 8, 6), (16, 4, 3)))
    torch.testing.assert_close(features.tokens, features.maps[-1].mean((3, 4))[:, :, None])


def test_sizes_are_those_of_convnext() -> None:
    """27.8 million weights have the stages of ConvNeXt-T in its paper; here the stem is in two steps."""
    with torch.device("meta"):
        tiny, pico = (Pyramid(Spec(maps=((3, 64, 96),)), size=size) for size in ("tiny", "pico"))
    assert tiny.spec.maps == ((48, 32, 48), (96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3))
    assert sum(weight.numel() for weight in tiny.parameters()) == pytest.approx(27.8e6, rel=0.005)
    assert sum(weight.numel() for weight in pico.parameters()) < 1.1e5


def test_no_step_and_no_sample_sees_another(pyramid: Pyramid) -> None:
    """P28."""
    frames = drawn(3, 3, 2, 32, 24)
    whole, alone = pyramid(states(frames)).maps, pyramid(states(frames[1:2, 2:])).maps
    for one, other in zip(whole, alone):
        torch.testing.assert_close(one[1:2, 2:], other, atol=1e-5, rtol=1e-5)


def test_what_moves_by_a_stride_moves_in_the_map_by_a_pixel() -> None:
    torch.manual_seed(0)
    pyramid = Pyramid(Spec(maps=((1, 64, 64),)), widths=(4, 8), depths=(1, 1), kernel=3)
    frames = torch.zeros(2, 1, 1, 64, 64)
    frames[0, ..., 24:32, 28:36] = frames[1, ..., 28:36, 28:36] = drawn(8, 8)
    fine, coarse = pyramid(states(frames)).maps
    torch.testing.assert_close(fine[0, ..., 4:24, 4:28], fine[1, ..., 6:26, 4:28], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(coarse[0, ..., 3:12, 3:12], coarse[1, ..., 4:13, 3:12], atol=1e-5, rtol=1e-5)
    assert (coarse[0] - coarse[1]).abs().max() > 1e-3


def test_pixels_are_normed_by_what_is_said_of_them() -> None:
    made = []
    for options in ({}, {"pixel_mean": 0.5, "pixel_std": 2.0}):
        torch.manual_seed(0)
        made.append(Pyramid(SPEC, widths=(8,), depths=(1,), **options))
    frames = drawn(1, 1, 2, 32, 24)
    torch.testing.assert_close(made[0](states(frames)).tokens, made[1](states(2 * frames + 0.5)).tokens)


def test_shrinking_weights_shrink_the_maps(pyramid: Pyramid) -> None:
    shown = states(drawn(2, 3, 2, 32, 24))
    before = pyramid(shown).maps[1]
    with torch.no_grad():
        pyramid.stages["stage2"].halve.weight *= 0.01
        pyramid.stages["stage2"].halve.bias *= 0.01
    torch.testing.assert_close(pyramid(shown).maps[1], 0.01 * before)


def test_layers_are_the_maps_as_tokens(pyramid: Pyramid) -> None:
    features = pyramid(states(drawn(2, 3, 2, 32, 24)), layers=("stage2",))
    torch.testing.assert_close(features.layers["stage2"], features.maps[1].flatten(3).mT)
    with pytest.raises(ValueError, match="no layer stage9; it has stage1, stage2, stage3"):
        pyramid(states(drawn(1, 1, 2, 32, 24)), layers=("stage9",))


@pytest.mark.parametrize(
    ("maps", "options", "said"),
    [
        ((), {}, "latent_mlp"),
        (((1, 48, 33),), {"widths": (4, 4), "depths": (1, 1)}, r"2 times \(stride 4\): 33 = 8 \* 4 \+ 1"),
        (((1, 48, 48),), {}, r"48 = 1 \* 32 \+ 16"),
        (((1, 32, 32),), {"widths": (4, 4), "depths": (1,)}, "2 widths and 1 depths"),
        (((1, 32, 32),), {"kernel": 4}, "kernel is 4; it must be odd"),
        (((1, 32, 32),), {"contrast": 6}, "contrast is 6; it must be odd"),
    ],
)
def test_what_cannot_be_is_refused(maps: tuple[tuple[int, int, int], ...], options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pyramid(Spec(maps=maps), **options)


def test_black_images_and_autocast_stay_finite(pyramid: Pyramid) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        features = pyramid(states(torch.zeros(1, 2, 2, 32, 24)))
    sum(one.float().square().sum() for one in features.maps).backward()
    assert all(one.isfinite().all() for one in features.maps)
    assert all(weight.grad.isfinite().all() for weight in pyramid.parameters())


def test_pixels_can_be_normed_by_their_surroundings() -> None:
    """By hand for one pixel; a darker or flatter picture is the same picture, and nothing is made of what is flat."""
    images = drawn(2, 3, 12, 10)
    seen = local_contrast(images, 5)
    square = images[1, :, 2:7, 4:9]
    deviation = (square.mean(0).var(unbiased=False) + 0.03**2).sqrt()
    torch.testing.assert_close(seen[1, :, 4, 6], (images[1, :, 4, 6] - square.mean((1, 2))) / deviation)
    torch.testing.assert_close(local_contrast(images + 7, 5), seen, atol=1e-3, rtol=0)
    torch.testing.assert_close(local_contrast(500 * images, 5), local_contrast(1000 * images, 5), atol=1e-3, rtol=1e-3)
    assert local_contrast(torch.full((1, 3, 8, 8), 0.7), 5).abs().max() < 1e-4
    made = Pyramid(SPEC, widths=(8,), depths=(1,), contrast=5)
    frames = drawn(2, 3, 2, 32, 24)
    torch.testing.assert_close(made(states(frames + 1)).maps[0], made(states(frames)).maps[0], atol=1e-3, rtol=0)


def test_images_are_told_apart_from_the_start() -> None:
    """Nothing but its pixels is in a state: one that is the same for all images would hide what tells them apart."""
    blank = torch.rand(24, 1, 1, 32, 32, generator=torch.Generator().manual_seed(1)).gt(0.9).float()
    blank[:, :, :, 16:] = 0
    made = Pyramid(Spec(maps=((1, 32, 32),)), widths=(8, 12, 16, 24), depths=(1, 1, 1, 1))
    tokens = made(states(blank)).tokens.flatten(0, 2).detach()
    assert (tokens - tokens.mean(0)).square().mean() > 0.1 * tokens.square().mean()
    assert not made(states(torch.zeros(1, 1, 1, 32, 32))).tokens.any()
