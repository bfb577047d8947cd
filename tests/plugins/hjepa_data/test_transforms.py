"""Crops and mirrors: the same for all frames of a clip, another for each sample, by its key alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.errors import Mistake
from hjepa.randomness import Key
from hjepa_data.flip import Flip
from hjepa_data.random_resized_crop import RandomResizedCrop, cut

BOTH = [Flip(), RandomResizedCrop()]
both = pytest.mark.parametrize("transform", BOTH, ids=lambda one: type(one).__name__)


def clips(count: int, frames: int = 3, height: int = 12, width: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def keys(count: int, seed: int = 0) -> Key:
    return Key.of(seed).fold(torch.arange(count))


def places(count: int, height: int, width: int) -> Tensor:
    """(B, 1, 2, H, W): each pixel says where its centre is, in shares of the image."""
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)]).expand(count, 1, -1, -1, -1)


@both
@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 6), frames=st.integers(1, 4), seed=st.integers(0, 2**40))
def test_a_sample_is_changed_by_its_own_key_and_all_its_frames_alike(transform, count, frames, seed):
    x, key = clips(count, frames, seed=seed % 1000), keys(count, seed)
    changed = transform({"frames": x, "label": torch.arange(count)}, key)
    assert changed["frames"].shape == x.shape and changed["label"].tolist() == list(range(count))
    for row in range(count):
        alone = transform({"frames": x[row : row + 1]}, Key(key.word[row : row + 1]))
        assert torch.equal(alone["frames"][0], changed["frames"][row])
        for frame in range(frames):
            still = transform({"frames": x[row : row + 1, frame : frame + 1]}, Key(key.word[row : row + 1]))
            assert torch.equal(still["frames"][0, 0], changed["frames"][row, frame])


@both
def test_streams_that_are_named_are_changed_together_and_no_others(transform):
    x = clips(8)
    made = type(transform)(streams=["one", "two"])({"one": x, "two": x.clone(), "three": x}, keys(8))
    assert torch.equal(made["one"], made["two"]) and made["three"] is x and not torch.equal(made["one"], x)


@both
def test_a_stream_that_cannot_be_changed_is_told(transform):
    with pytest.raises(Mistake, match=r"the batch has no 'frames' to transform, did you mean 'frame'\? \(it has: frame\)"):
        transform({"frame": clips(2)}, keys(2))
    with pytest.raises(Mistake, match=r"'frames' is \(2, 4\); a transform of images needs"):
        transform({"frames": torch.zeros(2, 4)}, keys(2))


@both
def test_half_precision_stays(transform):
    assert transform({"frames": clips(2).bfloat16()}, keys(2))["frames"].dtype == torch.bfloat16


# --- flip -------------------------------------------------------------------------------------------------------------


def test_the_share_that_is_mirrored_is_as_asked():
    x = clips(2000, 1, 2, 4)
    for probability, low, high in ((0.0, 0, 0), (1.0, 2000, 2000), (0.5, 900, 1100), (0.2, 330, 470)):
        found = Flip(probability=probability)({"frames": x}, keys(2000))["frames"]
        mirrored = (found == x.flip(-1)).flatten(1).all(1)
        assert low <= int(mirrored.sum()) <= high and torch.equal(found[~mirrored], x[~mirrored])


# --- crops ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    low=st.floats(0.01, 1),
    span=st.floats(0, 1),
    ratio=st.floats(0.1, 10),
    seed=st.integers(0, 2**40),
)
def test_boxes_lie_within_the_image_and_cover_what_was_asked(sides, low, span, ratio, seed):
    (height, width), high = sides, min(1.0, low + span)
    crop = RandomResizedCrop(scale=(low, high), ratio=(ratio, 1.5 * ratio))
    centre, size = crop.boxes(keys(200, seed), height, width)
    assert (centre - size / 2 >= -1e-6).all() and (centre + size / 2 <= 1 + 1e-6).all()
    area, shape = size.prod(1), size[:, 0] * width / (size[:, 1] * height)
    assert area.min() >= low - 1e-4 and area.max() <= high + 1e-4
    fits = (shape >= ratio * 0.999) & (shape <= 1.5 * ratio * 1.001)
    touches = (size > 1 - 1e-3).any(1)
    assert (fits | touches).all()  # where no ratio fits, the nearest that does


def test_shares_and_places_are_drawn_evenly():
    centre, size = RandomResizedCrop(scale=(0.2, 0.8)).boxes(keys(20_000), 32, 32)
    area = size.prod(1)
    assert torch.histc(area, 6, 0.2, 0.8).sub(20_000 / 6).abs().max() < 200
    free = ((centre - size / 2) / (1 - size).clamp(min=1e-6)).flatten()
    assert torch.histc(free, 5, 0, 1).sub(len(free) / 5).abs().max() < 300
    logs = (size[:, 0] / size[:, 1]).log()[area < 0.7]
    assert abs(logs.mean()) < 0.01 and logs.min() < -0.28 and logs.max() > 0.28


@settings(max_examples=20, deadline=None)
@given(st.integers(6, 30), st.integers(6, 30), st.integers(0, 2**40))
def test_each_pixel_comes_from_its_place_in_the_box(height, width, seed):
    where, key, crop = places(16, height, width), keys(16, seed), RandomResizedCrop()
    found = crop({"frames": where}, key)["frames"][:, 0]
    centre, size = crop.boxes(key, height, width)
    expected = (centre - size / 2)[..., None, None] + size[..., None, None] * where[:, 0]
    edge = torch.tensor([0.5 / width, 0.5 / height])[:, None, None]
    torch.testing.assert_close(found, expected.clamp(edge, 1 - edge), atol=1e-5, rtol=0)


def test_the_whole_image_stays_as_it_is_and_a_part_is_what_interpolation_gives():
    x = clips(2)
    torch.testing.assert_close(RandomResizedCrop(scale=(1, 1), ratio=(4 / 3, 4 / 3))({"frames": x}, keys(2))["frames"], x)
    found = cut(x, torch.tensor([[0.5, 0.5]] * 2), torch.tensor([[0.5, 0.5]] * 2))
    part = x[..., 3:9, 4:12].flatten(0, 1)
    expected = torch.nn.functional.interpolate(part, (12, 16), mode="bilinear").view_as(x)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match=r"scale goes from 0 to 1; it must rise, from more than 0"):
        RandomResizedCrop(scale=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"scale goes from 0\.5 to 0\.2"):
        RandomResizedCrop(scale=(0.5, 0.2))
    with pytest.raises(ValueError, match="ratio goes from 2 to 1"):
        RandomResizedCrop(ratio=(2.0, 1.0))
