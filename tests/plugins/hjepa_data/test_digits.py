"""Displaced digits: what a sample depends on, where the ink is, and that their pixels give little away."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hjepa.errors import Mistake
from hjepa_data.digits import Digits
from hjepa_data.scans import scans

CPU = torch.device("cpu")
SETTINGS = st.fixed_dictionaries(
    {
        "views": st.sampled_from([1, 2]),
        "size": st.integers(16, 48),
        "digit_size": st.integers(4, 10),
        "shift": st.sampled_from([None, 0.0, 1.5]),
        "scale": st.sampled_from([0.0, 0.3]),
        "noise": st.sampled_from([0.0, 0.1]),
    }
)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@given(SETTINGS, st.integers(0, 2**40), st.lists(st.integers(0, 10**6), min_size=1, max_size=9))
def test_a_sample_depends_on_its_seed_split_and_id_alone(options, seed, ids):
    data = Digits(seed, **options).split("valid")
    together = data.batch(torch.tensor(ids), CPU)
    assert same(together, Digits(seed, **options).split("valid").batch(torch.tensor(ids), CPU))
    for row, one in enumerate(ids):
        assert same(data.batch(torch.tensor([one]), CPU), {key: value[row : row + 1] for key, value in together.items()})


@given(SETTINGS, st.integers(1, 5))
def test_shapes_and_streams(options, count):
    data = Digits(3, **options)
    batch = data.batch(torch.arange(count), CPU)
    views, size = ["view", "other_view"][: options["views"]], options["size"]
    assert list(data.streams) == views
    assert all(batch[view].shape == (count, 1, 1, size, size) and batch[view].dtype == torch.float32 for view in views)
    assert all(spec.maps == ((1, size, size),) and spec.steps == 1 for spec in data.streams.values())
    assert batch.keys() == {*views, "label", "position"}
    assert batch["label"].shape == (count,) and batch["label"].dtype == torch.int64
    assert batch["position"].shape == (count, 2) and batch["position"].dtype == torch.float32


def test_seeds_splits_ids_and_views_differ():
    ids = torch.arange(2)
    first = Digits(0).batch(ids, CPU)
    others = (Digits(1).batch(ids, CPU)["view"], Digits(0).split("test").batch(ids, CPU)["view"], first["other_view"])
    assert not any(torch.equal(first["view"], other) for other in others)
    assert not torch.equal(*first["view"])


@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_the_ink_is_where_the_position_says(scale):
    """A symmetric scan has its centre of mass at the centre of its box, at sub-pixel places and at every scale."""
    data = Digits(0, size=40, digit_size=20, scale=scale)
    side = 20 * torch.tensor([[1 - scale], [1 + scale]], dtype=torch.float64)[None]
    corner = torch.tensor([[0.0, 4.2], [3.37, 7.71]], dtype=torch.float64)[None]
    ring = torch.nn.functional.pad(torch.ones(1, 8, 8), (1, 1, 1, 1))
    shown = data._shown(ring, corner, side)[0]
    middle = torch.arange(40) + 0.5
    mass = shown.sum((1, 2))
    centre = torch.stack([(shown.sum(1) * middle).sum(1), (shown.sum(2) * middle).sum(1)], dim=1) / mass[:, None]
    torch.testing.assert_close(centre, (corner + side / 2)[0].float(), atol=0.05, rtol=0)
    assert mass[1] / mass[0] == pytest.approx(((1 + scale) / (1 - scale)) ** 2, rel=0.05)


def test_positions_are_of_the_first_view_and_everywhere():
    data = Digits(0, noise=0.0, scale=0.0)
    batch = data.batch(torch.arange(4000), CPU)
    assert batch["position"].abs().max() <= 1
    assert batch["position"].square().mean() == pytest.approx(1 / 3, abs=0.02)
    ink = batch["view"][:, 0, 0]
    middle = torch.arange(16) + 0.5 - 8
    x = (ink.sum(1) * middle).sum(1) / ink.sum((1, 2)) / 4
    assert (x - batch["position"][:, 0]).abs().mean() < 0.1


def test_views_are_as_far_apart_as_shift_allows():
    """The centres of mass of two views of one scan differ by the difference of their places."""
    middle = torch.arange(24.0)
    apart = {}
    for shift in (0.0, 2.0, None):
        batch = Digits(0, size=24, shift=shift, scale=0.0, noise=0.0).batch(torch.arange(500), CPU)
        x = [(batch[view][:, 0, 0].sum(1) * middle).sum(1) / batch[view].sum((1, 2, 3, 4)) for view in ("view", "other_view")]
        apart[shift] = (x[0] - x[1]).abs().max()
    assert apart[0.0] < 1e-3
    assert 3 < apart[2.0] < 4.1
    assert apart[None] > 12


def test_both_views_show_one_scan():
    batch = Digits(0, shift=0.0, scale=0.0, noise=0.0).batch(torch.arange(20), CPU)
    torch.testing.assert_close(batch["view"], batch["other_view"])
    noisy = Digits(0, shift=0.0, scale=0.0, noise=0.2).batch(torch.arange(20), CPU)
    assert (noisy["view"] - batch["view"]).std() == pytest.approx(0.2, rel=0.05)
    assert (noisy["view"] - noisy["other_view"]).std() == pytest.approx(0.2 * 2**0.5, rel=0.05)


def test_labels_name_the_digits_shown():
    """A box over 9 pixels of a canvas of 10 shows the nodes of the scan themselves."""
    data = Digits(0, size=10, digit_size=9, scale=0.0)
    images, labels = scans("train", CPU)
    at_half = data._shown(images[:40], torch.full((40, 1, 2), 0.5, dtype=torch.float64), torch.full((40, 1, 1), 9.0).double())
    torch.testing.assert_close(at_half[:, 0], images[:40])
    shown = Digits(0, size=10, digit_size=9, scale=0.0, noise=0.0, shift=0.0).batch(torch.arange(60), CPU)
    near = torch.cdist(shown["view"].flatten(1), images.flatten(1)).argmin(1)
    assert (labels[near] == shown["label"]).float().mean() > 0.9


def test_raw_pixels_give_little_away():
    """A least-squares reader of 1000 displaced digits names few others; of digits at one place it names most."""
    found = {}
    for size, shift in ((9, 0.0), (16, None)):
        data = Digits(0, size=size, shift=shift, scale=0.0 if size == 9 else 0.2)
        train, test = (data.split(split).batch(torch.arange(1000), CPU) for split in ("train", "test"))
        x, y = train["view"].flatten(1), torch.nn.functional.one_hot(train["label"]).float()
        weight = torch.linalg.solve(x.T @ x + 3 * torch.eye(x.shape[1]), x.T @ y)
        found[size] = float(((test["view"].flatten(1) @ weight).argmax(1) == test["label"]).float().mean())
    assert found[16] < 0.25
    assert found[9] > 0.6


def test_lengths_and_splits():
    data = Digits(0, samples=7, held_out=3)
    assert [len(data.split(name)) for name in ("train", "valid", "test")] == [7, 3, 3]
    with pytest.raises(Mistake, match="did you mean 'valid'"):
        data.split("validation")


def test_digits_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="digit_size is 16"):
        Digits(0, digit_size=16)
    with pytest.raises(ValueError, match="boxes of 6 to 18 pixels"):
        Digits(0, digit_size=12, scale=0.5)
    with pytest.raises(ValueError, match="boxes of 0 to 8"):
        Digits(0, digit_size=4, scale=1.0)


def test_it_travels_to_worker_processes():
    data, ids = Digits(1).split("test"), torch.arange(3)
    assert same(pickle.loads(pickle.dumps(data)).batch(ids, CPU), data.batch(ids, CPU))
