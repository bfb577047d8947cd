from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa.contracts import Here, Pair, Spec
from hjepa.randomness import Key
from hjepa_prevention.infonce import Infonce

HERE = Here(lambda: None, lambda: None, lambda encoder: None, Key.of(0), Key.of(0, 1), 1)


def made(width: int, **options: object) -> Infonce:
    return Infonce(Spec(width), **options)


def contrast(prediction: Tensor, target: Tensor, prevention: Infonce | None = None, **options: object) -> Tensor:
    prevention = prevention or made(prediction.shape[-1], **options)
    return prevention.terms(Pair(prediction, target, prediction), HERE)["contrast"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_cross_entropy_of_the_own_target() -> None:
    """P12: the reference in float64."""
    a, b = drawn(9, 5), drawn(9, 5, seed=1)
    near = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.3
    own = torch.arange(9)
    torch.testing.assert_close(contrast(a, b, temperature=0.3), F.cross_entropy(near, own))
    both = (F.cross_entropy(near, own) + F.cross_entropy(near.T, own)) / 2
    torch.testing.assert_close(contrast(a, b, temperature=0.3, symmetric=True, weight=2.0), 2 * both)


def test_both_as_negatives_and_symmetric_is_the_loss_of_simclr() -> None:
    a, b = drawn(7, 5), drawn(7, 5, seed=1)
    views = F.normalize(torch.cat([a, b]), dim=1)
    near = (views @ views.T / 0.5).masked_fill(torch.eye(14, dtype=torch.bool), -torch.inf)
    expected = F.cross_entropy(near, (torch.arange(14) + 7) % 14)
    torch.testing.assert_close(contrast(a, b, temperature=0.5, negatives="both", symmetric=True), expected)


@pytest.mark.parametrize(("negatives", "among"), [("targets", 6), ("both", 11)])
def test_collapsed_rows_cost_the_logarithm_of_those_among_which_one_is_sought(negatives: str, among: int) -> None:
    for z in (torch.full((6, 3), 2.0), torch.zeros(6, 3)):
        assert contrast(z, z, negatives=negatives).item() == pytest.approx(math.log(among), abs=1e-5)
    assert contrast(torch.ones(1, 3), torch.ones(1, 3), negatives=negatives).item() == 0


def test_orthogonal_pairs_cost_what_the_temperature_leaves() -> None:
    z = torch.eye(4)
    assert contrast(z, z, temperature=0.5).item() == pytest.approx(math.log(1 + 3 * math.exp(-2)), abs=1e-6)


def test_over_names_the_rows_among_which_a_target_is_sought() -> None:
    a, b = drawn(5, 3, 2, 4), drawn(5, 3, 2, 4, seed=1)
    whole = {
        "step": [(a[:, t].reshape(-1, 4), b[:, t].reshape(-1, 4)) for t in range(3)],
        "batch": [(a[:, 0].reshape(-1, 4), b[:, 0].reshape(-1, 4))],
        "time": [(a[i, :, n], b[i, :, n]) for i in range(5) for n in range(2)],
        "all": [(a.reshape(-1, 4), b.reshape(-1, 4))],
    }
    for over, groups in whole.items():
        for negatives in ("targets", "both"):
            alone = torch.stack([contrast(*group, negatives=negatives) for group in groups]).mean()
            torch.testing.assert_close(contrast(a, b, over=over, negatives=negatives), alone)


# --- the queue ----------------------------------------------------------------------------------------------------------


def step(prevention: Infonce, target: Tensor) -> Tensor:
    value = contrast(drawn(*target.shape, seed=9).to(target.dtype), target, prevention)
    prevention.after_step(0)
    return value


def test_an_empty_queue_changes_nothing_and_a_filled_one_adds_negatives() -> None:
    a, b, earlier = drawn(4, 3), drawn(4, 3, seed=1), drawn(5, 3, seed=2)
    assert contrast(a, b, made(3, queue=8)) == contrast(a, b)
    prevention = made(3, queue=8)
    step(prevention, earlier)
    own, columns = F.normalize(a, dim=1), F.normalize(torch.cat([b, earlier]), dim=1)
    expected = F.cross_entropy(own @ columns.T / 0.1, torch.arange(4))
    torch.testing.assert_close(contrast(a, b, prevention), expected, rtol=1e-5, atol=1e-6)


def test_the_newest_targets_take_the_places_of_the_oldest() -> None:
    prevention, given = made(2, queue=5), [F.normalize(drawn(3, 2, seed=seed).float(), dim=1) for seed in range(4)]
    for count, target in enumerate(given, 1):
        step(prevention, target)
        newest = torch.cat(given[:count])[-5:]
        held = prevention.queue[: min(5, 3 * count)]
        torch.testing.assert_close(held[held[:, 0].argsort()], newest[newest[:, 0].argsort()])
    many = F.normalize(drawn(20, 2, seed=7).float(), dim=1)
    step(prevention, many)
    held, newest = prevention.queue, many[-5:]
    torch.testing.assert_close(held[held[:, 0].argsort()], newest[newest[:, 0].argsort()])
    assert prevention.pushed == 3 * 4 + 5


def test_the_parts_of_a_batch_all_go_into_the_queue() -> None:
    target, whole, parted = drawn(6, 3), made(3, queue=8), made(3, queue=8)
    step(whole, target)
    for part in target.split(2):
        contrast(part, part, parted)
    parted.after_step(0)
    assert torch.equal(parted.queue, whole.queue) and parted.pushed == 6


def test_the_queue_moves_after_a_step_of_training_alone() -> None:
    prevention, z = made(3, queue=4), drawn(4, 3).float()
    contrast(z, z, prevention)
    assert prevention.pushed == 0
    prevention.eval()
    prevention.after_step(0)
    before = prevention.queue.clone()
    contrast(2 + z, z.flip(0), prevention)
    prevention.after_step(1)
    assert torch.equal(prevention.queue, before)
    assert prevention.pushed == 4


def test_the_queue_is_in_the_checkpoint() -> None:
    prevention, other = made(3, queue=4), made(3, queue=4)
    step(prevention, drawn(3, 3).float())
    other.load_state_dict(prevention.state_dict())
    a, b = drawn(4, 3), drawn(4, 3, seed=1)
    assert sorted(prevention.state_dict()) == ["pushed", "queue"]
    assert torch.equal(contrast(a, b, other), contrast(a, b, prevention))
    assert contrast(a, b, other) > contrast(a, b)


def test_a_queue_and_the_steps_of_one_sample_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="over: time"):
        made(3, queue=4, over="time")


def test_it_spreads_what_is_nearly_collapsed() -> None:
    """From a spread of 1e-3 around a common point."""
    a, b = ((1 + 1e-3 * drawn(32, 4, seed=seed)).requires_grad_() for seed in (0, 1))
    optimizer = torch.optim.Adam([a, b], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        contrast(a, b).backward()
        optimizer.step()
    assert contrast(a, b) < 0.5 < math.log(32)
    assert torch.linalg.svdvals(F.normalize(a.detach(), dim=1))[-1] > 1
