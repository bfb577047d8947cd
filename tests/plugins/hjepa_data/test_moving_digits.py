from __future__ import annotations

import math
import pickle

import pytest
import sklearn.datasets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa.errors import Mistake
from hjepa_data import moving_digits
from hjepa_data.moving_digits import MovingDigits, resampled, scans

CPU = torch.device("cpu")
SETTINGS = st.fixed_dictionaries(
    {
        "digits": st.integers(1, 4),
        "frames": st.integers(1, 7),
        "size": st.integers(9, 33),
        "digit_size": st.integers(1, 8),
        "noise": st.sampled_from([0.0, 0.1]),
        "drift": st.sampled_from([0.0, 1.7]),
        "flow": st.booleans(),
    }
)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@settings(max_examples=25, deadline=None)
@given(SETTINGS, st.integers(0, 2**40), st.lists(st.integers(0, 10**6), min_size=1, max_size=9))
def test_a_sample_depends_on_its_seed_split_and_id_alone(options, seed, ids):
    data = MovingDigits(seed, **options).split("valid")
    together = data.batch(torch.tensor(ids), CPU)
    again = MovingDigits(seed, **options).split("valid").batch(torch.tensor(ids), CPU)
    assert same(together, again)
    for row, one in enumerate(ids):
        alone = data.batch(torch.tensor([one]), CPU)
        assert same(alone, {key: value[row : row + 1] for key, value in together.items()})


def test_seeds_splits_and_ids_differ():
    ids = torch.arange(2)
    first = MovingDigits(0).batch(ids, CPU)["frames"]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, MovingDigits(1).batch(ids, CPU)["frames"])
    assert not torch.equal(first, MovingDigits(0).split("test").batch(ids, CPU)["frames"])


@settings(max_examples=25, deadline=None)
@given(SETTINGS, st.integers(1, 5))
def test_shapes_and_streams(options, count):
    data = MovingDigits(3, **options)
    frames, digits, size = options["frames"], options["digits"], options["size"]
    batch = data.batch(torch.arange(count), CPU)
    shapes = {
        "frames": (count, frames, 1, size, size),
        "label": (count, digits),
        "position": (count, frames, digits, 2),
        "velocity": (count, frames, digits, 2),
        "heading": (count, digits),
    }
    if options["flow"]:
        shapes |= {"flow": (count, frames - 1, 2, size, size), "occluded": (count, frames - 1, size, size)}
    assert {key: tuple(value.shape) for key, value in batch.items()} == shapes
    types = {"label": torch.int64, "heading": torch.int64, "occluded": torch.bool}
    assert all(value.dtype == types.get(key, torch.float32) for key, value in batch.items())
    assert data.streams["frames"].maps == ((1, size, size),)
    assert data.streams["frames"].steps == frames


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 4), st.sampled_from([(32, 14), (20, 19), (9, 3)]), st.sampled_from([0.2, 3.0, 40.0]))
def test_digits_stay_on_the_canvas_and_keep_their_speed(seed, digits, sides, fastest):
    size, digit_size = sides
    data = MovingDigits(seed, digits=digits, size=size, digit_size=digit_size, frames=50, slowest=fastest / 2, fastest=fastest)
    batch = data.batch(torch.arange(8), CPU)
    assert batch["position"].abs().max() <= 1
    assert batch["frames"].min() >= 0
    assert batch["frames"].max() <= 1 + 1e-6
    speed = batch["velocity"].norm(dim=-1)
    torch.testing.assert_close(speed, speed[:, :1].expand_as(speed))
    assert (speed >= fastest / 2 * 0.999).all()
    assert (speed <= fastest * 1.001).all()


def test_positions_follow_velocities_between_bounces_and_turn_at_walls():
    data = MovingDigits(5, frames=40)
    batch = data.batch(torch.arange(64), CPU)
    travel = batch["position"].diff(dim=1) * (data.size - data.digit_size) / 2
    velocity = batch["velocity"]
    straight = velocity[:, 1:] == velocity[:, :-1]
    torch.testing.assert_close(travel[straight], velocity[:, :-1][straight], atol=1e-4, rtol=0)
    turned = velocity[:, 1:] == -velocity[:, :-1]
    assert (straight | turned).all()
    # The wall is met at a share of the frame: until then the old velocity, from then on the new one.
    wall = batch["velocity"][:, :-1].sign()
    until = (wall - batch["position"][:, :-1]) * (data.size - data.digit_size) / 2
    bounced = 2 * until - velocity[:, :-1]
    torch.testing.assert_close(travel[turned], bounced[turned], atol=1e-4, rtol=0)
    assert turned.any()


def test_all_directions_and_places_occur():
    batch = MovingDigits(0, frames=1).batch(torch.arange(4000), CPU)
    for axis in range(2):
        assert abs(batch["position"][..., axis].mean()) < 0.05
        assert batch["position"][..., axis].square().mean() == pytest.approx(1 / 3, abs=0.03)
        assert abs(batch["velocity"][..., axis].sign().mean()) < 0.06


def test_the_ink_is_where_the_position_says():
    """A symmetric scan has its centre of mass at the centre of its box, at sub-pixel positions too."""
    ring = torch.zeros(1, 1, 10, 10)
    ring[..., 1:9, 1:9] = 1
    data = MovingDigits(0, size=40, digit_size=18)
    corner = torch.tensor([[0.0, 22.0], [3.3, 7.71], [10.5, 0.25]], dtype=torch.float64)[None, :, None]
    ink = data._ink(ring, corner)[0, 0]
    middle = torch.arange(40) + 0.5
    x = (ink.sum(dim=1) * middle).sum(dim=1) / ink.sum(dim=(1, 2))
    y = (ink.sum(dim=2) * middle).sum(dim=1) / ink.sum(dim=(1, 2))
    torch.testing.assert_close(torch.stack([x, y], dim=1), corner[0, :, 0].float() + 9, atol=1e-3, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(-5, 5), st.integers(-5, 5))
def test_whole_pixels_shift_the_picture_by_index(scan, right, down):
    data = MovingDigits(0)
    image = scans("train", CPU)[0][scan][None, None]
    start = torch.tensor([8.37, 9.61], dtype=torch.float64)
    corner = torch.stack([start, start + torch.tensor([right, down])])[None, :, None]
    before, after = data._ink(image, corner)[0, 0]
    assert before.sum() > 10
    torch.testing.assert_close(after, before.roll((down, right), dims=(0, 1)), atol=2e-6, rtol=0)


def test_resampling_agrees_with_the_sum_over_all_nodes():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 6, 6, generator=generator)
    x, y = 5 * torch.rand(2, 3, 4, 7, generator=generator)
    y[:, :, 0], x[:, :, -1] = 0, 5
    hat = lambda at: (1 - (at[..., None] - torch.arange(6)).abs()).clamp(min=0)  # noqa: E731
    expected = torch.einsum("rtin,rnm,rtjm->rtij", hat(y), images, hat(x))
    torch.testing.assert_close(resampled(images, x, y), expected)


def test_flow_is_the_displacement_of_the_topmost_digit_and_of_the_background():
    data = MovingDigits(2, digits=3, frames=30, drift=1.5, flow=True, fastest=4.0)
    batch = data.batch(torch.arange(6), CPU)
    travel = batch["position"].diff(dim=1) * (data.size - data.digit_size) / 2
    key = moving_digits.Key.of(2, "moving_digits", "train").fold(torch.arange(6))
    chosen = moving_digits.integers(key, "scan", 0, len(scans("train", CPU)[0]), (3,))
    inked = data._ink(scans("train", CPU)[0][chosen], data._paths(key)[0])[:, :, :-1] > 0
    flow = batch["flow"].movedim(2, -1)
    above = torch.zeros_like(inked[:, 0])
    for digit in (2, 1, 0):
        seen = inked[:, digit] & ~above
        wanted = travel[:, :, digit, None, None].expand_as(flow)
        assert seen.any()
        torch.testing.assert_close(flow[seen], wanted[seen], atol=1e-4, rtol=0)
        above |= inked[:, digit]
    ground = flow[~above]
    torch.testing.assert_close(ground.norm(dim=-1), torch.full((len(ground),), 1.5))
    assert all(flow[row][~above[row]].unique(dim=0).shape[0] == 1 for row in range(6))


def test_frames_move_as_the_flow_says():
    """Each pixel of the digit is found again, one frame later, where its flow points."""
    data = MovingDigits(4, size=40, digit_size=18, flow=True, slowest=0.5, fastest=1.5)
    batch = data.batch(torch.arange(16), CPU)
    before, after = batch["frames"][:, :-1, 0], batch["frames"][:, 1:]
    pixels = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="xy"))
    landed = (pixels + batch["flow"]).movedim(2, -1) / 39 * 2 - 1
    found = torch.nn.functional.grid_sample(after.flatten(0, 1), landed.flatten(0, 1), align_corners=True)
    digit = before > 0
    # Looking up between pixels blurs the strokes a little; standing still, or the wrong way, is several times worse.
    error = (found.view_as(before) - before)[digit].abs().mean()
    standing = (after[:, :, 0] - before)[digit].abs().mean()
    assert error < 0.35 * standing


def test_the_background_is_smooth_and_moves():
    data = MovingDigits(0, drift=2.0, frames=40)
    ground, pan = data._background(moving_digits.Key.of(0).fold(torch.arange(5)))
    torch.testing.assert_close(pan.norm(dim=-1), torch.full((5,), 2.0))
    assert ground.min() >= 0
    assert ground.max() <= 0.5
    assert ground.std(dim=(2, 3)).min() > 0.01
    assert (ground.diff(dim=1).abs().mean(dim=(1, 2, 3)) > 0.002).all()
    # Nodes are 8 pixels apart and differ by 0.5 at most; a seam, where the texture comes round again, would be steeper.
    for axis in (2, 3):
        assert ground.diff(dim=axis).abs().max() <= 0.5 / 8 + 1e-6


@pytest.mark.parametrize("way", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_a_background_that_moves_by_whole_pixels_is_shifted_by_index(monkeypatch, way):
    """Also where it comes round again."""
    table = torch.tensor([way], dtype=torch.float64)
    monkeypatch.setattr(moving_digits, "_directions", lambda device: table)
    data = MovingDigits(0, drift=1.0, frames=20, size=8, digit_size=4)
    ground, pan = data._background(moving_digits.Key.of(0).fold(torch.arange(3)))
    assert torch.equal(pan, table.float().expand(3, 2))
    right, down = way
    moved = ground.roll((down, right), dims=(2, 3))
    torch.testing.assert_close(ground[:, 1:, 1:-1, 1:-1], moved[:, :-1, 1:-1, 1:-1], atol=1e-6, rtol=0)


def test_noise_has_its_standard_deviation():
    ids = torch.arange(16)
    clean, noisy = (MovingDigits(0, noise=noise).batch(ids, CPU)["frames"] for noise in (0.0, 0.2))
    assert (noisy - clean).std() == pytest.approx(0.2, rel=0.02)
    assert abs((noisy - clean).mean()) < 0.002


def test_no_scan_is_in_two_splits(monkeypatch):
    """Scan k is replaced by a square of brightness k, so that frames show which scans were used."""
    scans.cache_clear()
    source = sklearn.datasets.load_digits()
    source.images = (torch.arange(1, 1798)[:, None, None] * torch.ones(8, 8) * 16 / 1797).numpy().astype("float64")
    source.target = torch.arange(1797).numpy()
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: source)
    used = {}
    for split in ("train", "valid", "test"):
        data = MovingDigits(11, frames=1, size=48, digit_size=32).split(split)
        batch = data.batch(torch.arange(3000), CPU)
        seen = (batch["frames"].amax(dim=(1, 2, 3, 4)) * 1797).round().long() - 1
        assert torch.equal(seen, batch["label"][:, 0])
        used[split] = set(seen.tolist())
    scans.cache_clear()
    assert not used["train"] & used["test"]
    assert not used["train"] & used["valid"]
    assert not used["valid"] & used["test"]
    assert len(used["valid"]) == 180
    assert len(used["test"]) > 350
    assert len(used["train"]) > 1100


def test_the_scans_of_a_split_do_not_depend_on_the_seed():
    """Not even by way of equal scans: the bundled ones all differ."""
    parts = {split: {image.numpy().tobytes() for image in scans(split, CPU)[0]} for split in ("train", "valid", "test")}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 1797


def test_labels_name_the_digits_shown():
    images, labels = scans("test", CPU)
    source = sklearn.datasets.load_digits()
    known = {image.astype("float32").tobytes(): int(label) for image, label in zip(source.images, source.target, strict=True)}
    for image, label in zip(images[:50], labels[:50], strict=True):
        assert known[(image[1:-1, 1:-1] * 16).contiguous().numpy().tobytes()] == label


def test_lengths_and_splits():
    data = MovingDigits(0, samples=7, held_out=3)
    assert [len(data.split(name)) for name in ("train", "valid", "test")] == [7, 3, 3]
    assert len(data) == 7
    with pytest.raises(Mistake, match="did you mean 'valid'"):
        data.split("validation")


def test_options_that_leave_no_motion_are_refused():
    with pytest.raises(ValueError, match="digit_size is 32"):
        MovingDigits(0, digit_size=32)
    with pytest.raises(ValueError, match="slowest is 4"):
        MovingDigits(0, slowest=4.0)
    assert torch.isfinite(MovingDigits(0, size=2, digit_size=1, frames=1).batch(torch.tensor([0]), CPU)["frames"]).all()


def test_it_travels_to_worker_processes():
    data = MovingDigits(1, digits=2).split("test")
    ids = torch.arange(3)
    assert same(pickle.loads(pickle.dumps(data)).batch(ids, CPU), data.batch(ids, CPU))


def test_without_bounces_every_path_is_straight_and_stays_within_the_walls() -> None:
    free = MovingDigits(0, digits=2, frames=16, size=32, digit_size=12, slowest=0.4, fastest=1.3, bounces=False)
    batch = free.batch(torch.arange(200), torch.device("cpu"))
    assert batch["position"].abs().max() <= 1 + 1e-6
    assert torch.equal(batch["velocity"], batch["velocity"][:, :1].expand(-1, 16, -1, -1))
    travelled = batch["position"].double().diff(dim=1) * (32 - 12) / 2
    torch.testing.assert_close(travelled, batch["velocity"][:, 1:].double(), atol=1e-5, rtol=0)
    assert batch["position"].flatten(0, 2).amin(0).max() < -0.9 and batch["position"].flatten(0, 2).amax(0).min() > 0.9


def test_paths_that_must_meet_a_wall_are_refused() -> None:
    with pytest.raises(ValueError, match="15 steps of 3 pixels are 45, and there are 18"):
        MovingDigits(0, frames=16, bounces=False)
    with pytest.raises(ValueError, match="turns lead to walls"):
        MovingDigits(0, frames=4, bounces=False, turns=True)


def test_the_heading_is_the_eighth_of_the_circle_that_a_digit_sets_out_in() -> None:
    batch = MovingDigits(0, digits=2, frames=3).batch(torch.arange(500), torch.device("cpu"))
    x, y = batch["velocity"][:, 0].unbind(-1)
    for heading, axis in ((0, x), (2, y), (4, -x), (6, -y)):
        mostly = axis > 1.01 * math.cos(math.pi / 8) * batch["velocity"][:, 0].norm(dim=-1)
        assert mostly.any() and (batch["heading"][mostly] == heading).all()
    counts = torch.bincount(batch["heading"].flatten(), minlength=8)
    assert len(counts) == 8 and counts.min() > 90
