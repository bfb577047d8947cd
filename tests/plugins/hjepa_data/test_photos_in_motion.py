"""Photographs in motion: flow and occlusion are exact, and the splits share nothing."""

from __future__ import annotations

import pickle
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from hjepa.errors import Mistake
from hjepa.randomness import Key
from hjepa_data import photos, photos_in_motion
from hjepa_data.photos import Photos, bundled
from hjepa_data.photos_in_motion import PhotosInMotion

CPU = torch.device("cpu")
SETTINGS = st.fixed_dictionaries(
    {
        "frames": st.integers(1, 4),
        "size": st.integers(4, 24),
        "layers": st.integers(1, 4),
        "channels": st.sampled_from([1, 3]),
        "brightness": st.sampled_from([0.0, 0.3]),
        "noise": st.sampled_from([0.0, 0.1]),
    }
)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def shown(monkeypatch: pytest.MonkeyPatch, image: Tensor) -> None:
    """Both photographs are this one (H, W), grey."""
    height, width = image.shape
    pixels = image.flatten()[:, None].mul(255)
    made = Photos(torch.stack([pixels, pixels.roll(-1, 0)], dim=1), torch.zeros(1, height, width), 1, height, width)
    monkeypatch.setattr(photos_in_motion, "bundled", lambda channels, device: made)


def warped(image: Tensor, flow: Tensor) -> Tensor:
    """(R, C, S, S) at where flow (R, 2, S, S) leads to."""
    size = image.shape[-1]
    pixels = torch.stack(torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="xy"))
    at = (pixels + flow).movedim(1, -1) * 2 / (size - 1) - 1
    return torch.nn.functional.grid_sample(image, at, align_corners=True, padding_mode="border")


# --- what a sample is -------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(SETTINGS, st.integers(0, 2**40), st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_a_sample_depends_on_its_seed_split_and_id_alone(options: dict, seed: int, ids: list[int]) -> None:
    data = PhotosInMotion(seed, **options).split("valid")
    together = data.batch(torch.tensor(ids), CPU)
    assert same(together, PhotosInMotion(seed, **options).split("valid").batch(torch.tensor(ids), CPU))
    for row, one in enumerate(ids):
        assert same(data.batch(torch.tensor([one]), CPU), {key: value[row : row + 1] for key, value in together.items()})


@settings(max_examples=15, deadline=None)
@given(SETTINGS)
def test_shapes_and_streams(options: dict) -> None:
    data, (frames, size) = PhotosInMotion(3, **options), (options["frames"], options["size"])
    batch = data.batch(torch.arange(2), CPU)
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "frames": ((2, frames, options["channels"], size, size), torch.float32),
        "flow": ((2, frames - 1, 2, size, size), torch.float32),
        "occluded": ((2, frames - 1, size, size), torch.bool),
    }
    assert data.streams["frames"].maps == ((options["channels"], size, size),) and data.streams["frames"].steps == frames


def test_seeds_splits_and_ids_differ() -> None:
    ids = torch.arange(2)
    first = PhotosInMotion(0).batch(ids, CPU)["flow"]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, PhotosInMotion(1).batch(ids, CPU)["flow"])
    assert not torch.equal(first, PhotosInMotion(0).split("test").batch(ids, CPU)["flow"])


def test_lengths_splits_and_travel_to_worker_processes() -> None:
    data = PhotosInMotion(0, samples=7, held_out=3, size=16)
    assert [len(data.split(name)) for name in ("train", "valid", "test")] == [7, 3, 3]
    with pytest.raises(Mistake, match="did you mean 'valid'"):
        data.split("validation")
    assert same(pickle.loads(pickle.dumps(data)).batch(torch.arange(2), CPU), data.batch(torch.arange(2), CPU))


def test_shares_beyond_the_whole_are_refused() -> None:
    with pytest.raises(ValueError, match=r"affine \(0.7\) and bend \(0.5\) are shares"):
        PhotosInMotion(0, affine=0.7, bend=0.5)


# --- exact motion -----------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 8.0]), st.integers(2, 4))
def test_nothing_travels_further_than_was_asked_for(seed: int, displacement: float, frames: int) -> None:
    batch = PhotosInMotion(seed, size=24, displacement=displacement, frames=frames).batch(torch.arange(16), CPU)
    speed = batch["flow"].norm(dim=2)
    assert 0.4 * displacement < speed.max() <= displacement * (1 + 1e-5)


def test_flow_takes_every_background_to_where_it_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a photograph so smooth that looking up between pixels costs next to nothing, but for where it is mirrored."""
    place = torch.linspace(0, 12.56, 200)
    shown(monkeypatch, 0.5 + 0.25 * (place.sin()[:, None] + (2 * place).cos()))
    batch = PhotosInMotion(5, layers=1, channels=1, size=48, displacement=6.0, frames=3).batch(torch.arange(12), CPU)
    before, after = (batch["frames"][:, steps].flatten(0, 1) for steps in (slice(None, -1), slice(1, None)))
    error = (warped(after, batch["flow"].flatten(0, 1)) - before).abs()[:, 0][~batch["occluded"].flatten(0, 1)]
    assert error.max() < 0.015 < 0.05 < (after - before).abs().max()
    assert error.mean() < 0.01 * (after - before).abs().mean()


def test_what_is_not_occluded_is_found_again_where_the_flow_points() -> None:
    """Photographs are sharp: within what interpolation costs, which is the same for a still photograph that is shifted."""
    batch = PhotosInMotion(1, zoom=2.0).batch(torch.arange(24), CPU)
    before, after, seen = batch["frames"][:, 0], batch["frames"][:, 1], ~batch["occluded"][:, 0]
    error = (warped(after, batch["flow"][:, 0]) - before).abs().mean(dim=1)
    assert error[seen].mean() < 0.012 and error[~seen].mean() > 8 * error[seen].mean()
    assert (after - before).abs().mean(dim=1)[seen].mean() > 5 * error[seen].mean()


def test_occlusion_is_the_rule_pixel_by_pixel() -> None:
    data = PhotosInMotion(2, size=20, layers=4, frames=2, displacement=6.0)
    batch, key = data.batch(torch.arange(2), CPU), Key.of(2, "photos_in_motion", "train").fold(torch.arange(2))
    layers = [data._layer(key.fold(number), number > 0) for number in range(4)]
    before, after = torch.tensor([-0.5]), torch.tensor([0.5])
    for sample, row, column in product(range(2), range(20), range(20)):
        place = torch.tensor([column - 9.5, row - 9.5]).view(2, 1, 1)

        def covers(layer: photos_in_motion.Layer, place: Tensor, time: Tensor, sample: int = sample) -> bool:
            return bool(layer.cover(layer.motion.origin(place, time))[sample] >= 0.5)

        owner = max(number for number in range(4) if covers(layers[number], place, before))
        motion = layers[owner].motion
        landed = motion.place(motion.origin(place, before), after)[sample, 0]
        torch.testing.assert_close(batch["flow"][sample, 0, :, row, column], (landed - place).flatten(), atol=1e-4, rtol=0)
        hidden = any(covers(layer, landed, after) for layer in layers[owner + 1 :]) or bool((landed.abs() > 10).any())
        assert bool(batch["occluded"][sample, 0, row, column]) == hidden


def test_every_layer_is_seen_and_some_of_them_occlude() -> None:
    flows = [PhotosInMotion(0, layers=layers).batch(torch.arange(8), CPU) for layers in (1, 2, 3)]
    inner = (slice(None), 0, slice(9, -9), slice(9, -9))
    shares = [float(batch["occluded"][inner].float().mean()) for batch in flows]
    assert shares[0] == 0 and 0 < shares[1] < shares[2] < 0.3
    assert all((one["flow"] != other["flow"]).any(dim=2).float().mean() > 0.05 for one, other in pairwise(flows))


# --- photographs ------------------------------------------------------------------------------------------------------


def test_no_part_of_a_photograph_is_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph that is brighter to the right says what was shown of it."""
    shown(monkeypatch, torch.linspace(0, 1, 200).expand(150, -1))
    found = {
        name: PhotosInMotion(0, channels=1).split(name).batch(torch.arange(60), CPU)["frames"]
        for name in ("train", "valid", "test")
    }
    ends = {name: (frames.min() * 199, frames.max() * 199) for name, frames in found.items()}
    for name, (low, high) in {"train": (0, 99), "test": (100, 149), "valid": (150, 199)}.items():
        assert low - 0.5 < ends[name][0] < low + 3 and high - 3 < ends[name][1] < high + 0.5


def test_parts_with_structure_are_preferred() -> None:
    """A photograph that is flat but for its lower quarter is shown by its lower quarter mostly."""
    image = torch.full((1, 80, 80, 1), 100, dtype=torch.uint8)
    image[:, 60:] = torch.randint(0, 256, (20, 80, 1), generator=torch.Generator().manual_seed(0))
    structure = photos._structure(image)
    assert (structure[0, :40] == 0).all() and structure[0, 70:].min() > 50
    data, key = PhotosInMotion(0), Key.of(0).fold(torch.arange(400))
    chosen = data._texture(key)
    start, found = chosen.start.long(), bundled(3, CPU).structure
    strip = found[:, :, :320]
    assert found[chosen.photo, start[:, 1], start[:, 0]].mean() > 1.5 * strip.mean()


def test_looking_up_between_pixels() -> None:
    found = bundled(3, CPU)
    assert (found.count, found.height, found.width) == (2, 427, 640)
    x, y = torch.tensor([0.0, 638.25, 639.0, 17.5]), torch.tensor([0.0, 100.0, 426.0, 425.25])
    images = found.pixels[:, 0].float().view(2, 427, 640, 3).movedim(-1, 1)
    for photo in range(2):
        at = torch.stack([x / 639, y / 426], dim=-1)[None, None] * 2 - 1
        wanted = torch.nn.functional.grid_sample(images[photo : photo + 1], at, align_corners=True)[0, :, 0].T / 255
        torch.testing.assert_close(found.at(torch.tensor(photo), x, y), wanted, atol=1e-4, rtol=0)


def test_textures_are_turned_and_enlarged_but_not_distorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Photos, "at", lambda self, photo, x, y: torch.stack([x, y], dim=-1))
    texture = PhotosInMotion(0, zoom=2.0)._texture(Key.of(0).fold(torch.arange(50)))
    # Within a tenth of a pixel nothing is mirrored, as a rule.
    point = torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 0.1]]).view(1, 1, 2, 1, 3).expand(50, -1, -1, -1, -1)
    here, right, down = texture(point)[:, 0, 0].unbind(dim=1)
    right, down = right - here, down - here
    torch.testing.assert_close(torch.stack([-right[:, 1], right[:, 0]], dim=1), down, atol=1e-3, rtol=0)
    assert (
        (right.norm(dim=1) < 0.051).all() and (right.norm(dim=1) > 0.024).all() and right.amin() < -0.02 < 0.02 < right.amax()
    )


def test_grey_is_the_brightness_of_colours() -> None:
    options = {"seed": 4, "size": 24}
    colour, grey = (PhotosInMotion(**options, channels=channels).batch(torch.arange(3), CPU) for channels in (3, 1))
    assert torch.equal(colour["flow"], grey["flow"])
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close((colour["frames"] * weights).sum(dim=2, keepdim=True), grey["frames"], atol=0.004, rtol=0)


def test_brightness_and_noise_leave_the_motion_alone() -> None:
    plain, changed, noisy = (
        PhotosInMotion(0, frames=3, size=32, **options).batch(torch.arange(50), CPU)
        for options in ({}, {"brightness": 0.4}, {"noise": 0.1})
    )
    assert torch.equal(plain["flow"], changed["flow"]) and torch.equal(plain["occluded"], noisy["occluded"])
    factor = changed["frames"].sum(dim=(2, 3, 4)) / plain["frames"].sum(dim=(2, 3, 4))
    torch.testing.assert_close(changed["frames"], plain["frames"] * factor[..., None, None, None], atol=1e-4, rtol=1e-3)
    assert 0.6 < factor.min() < 0.65 and 1.35 < factor.max() < 1.4 and factor.diff(dim=1).abs().min() > 0
    assert (noisy["frames"] - plain["frames"]).std() == pytest.approx(0.1, rel=0.02)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    for number in range(5):
        pixels = np.full((40, 60, 3), 40 * number + 30, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    data = PhotosInMotion(0, folder=str(tmp_path), side=32, size=16, channels=1)
    found = data.batch(torch.arange(60), CPU)["frames"].mul(255).round().unique().tolist()
    assert {30, 70, 110, 150, 190} <= set(found)
    few = PhotosInMotion(0, folder=str(tmp_path), photos=1, side=32, size=16, channels=1)
    assert few.batch(torch.arange(20), CPU)["frames"].mul(255).round().unique().numel() == 1


def test_a_folder_without_images_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="there are no images in it"):
        PhotosInMotion(0, folder=str(tmp_path))
    with pytest.raises(Mistake, match="there is no such folder"):
        PhotosInMotion(0, folder=str(tmp_path / "nowhere"))


def test_everything_is_made_on_the_device_of_the_batch() -> None:
    meta = torch.device("meta")
    batch = PhotosInMotion(0, brightness=0.1, noise=0.1).batch(torch.arange(3, device=meta), meta)
    assert {values.device for values in batch.values()} == {meta}
