"""What losses that compare predictions with targets must do for any input: shape and seed are drawn, tensors come from them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hjepa.contracts import Here, Pair, Spec, States
from hjepa.randomness import Key
from hjepa_prevention.barlow import Barlow
from hjepa_prevention.dino import Dino
from hjepa_prevention.hinge import Hinge
from hjepa_prevention.infonce import Infonce
from hjepa_prevention.inverse_dynamics import InverseDynamics
from hjepa_prevention.sigreg import Sigreg
from hjepa_prevention.temporal_similarity import TemporalSimilarity
from hjepa_prevention.vicreg import Vicreg
from hjepa_prevention.wmse import Wmse, whitened

SEEDS = st.integers(0, 2**31)
WIDTHS = st.integers(1, 8)
ROWS = st.integers(2, 40)
SCALES = st.floats(0.1, 1000)
COMPARING: dict[str, tuple[Any, dict[str, Any]]] = {
    "barlow": (Barlow, {}),
    "barlow by pair": (Barlow, {"divided_by": "pair", "over": "step"}),
    "infonce": (Infonce, {}),
    "ntxent": (Infonce, {"negatives": "both", "symmetric": True, "over": "time"}),
    "queue": (Infonce, {"queue": 5}),
    "wmse": (Wmse, {}),
    "wmse in parts": (Wmse, {"size": 7, "normalise": False}),
    "wmse unshrunk": (Wmse, {"shrink": 0.0}),
    "hinge": (Hinge, {}),
    "dino": (Dino, {"prototypes": 6}),
    "vicreg": (Vicreg, {"inv": 25.0}),
}
KINDS = COMPARING | {
    "sigreg": (Sigreg, {"slices": 8}),
    "inverse dynamics": (InverseDynamics, {"hidden": 8}),
    "temporal similarity": (TemporalSimilarity, {}),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name: str, width: int, **options: object) -> Any:
    torch.manual_seed(0)
    kind, given_options = KINDS[name]
    return kind(Spec(width, grid=(2,), actions=3), **(given_options | options))


def value(prevention: Any, prediction: Tensor, target: Tensor, seed: int = 1) -> Tensor:
    states = target if target.dim() == 4 else target[:, None, None]
    actions = drawn(len(states), states.shape[1] - 1, 3).to(states.dtype)
    seen = States(states, torch.zeros(states.shape[:2], dtype=torch.int64), actions=actions)
    here = Here(lambda: seen, lambda: seen, lambda encoder: None, Key.of(0), Key.of(0, "frame", seed), 1)
    return sum(prevention.terms(Pair(prediction, target, target), here).values())


def loss(name: str, prediction: Tensor, target: Tensor, **options: object) -> Tensor:
    return value(made(name, prediction.shape[-1], **options).to(prediction.dtype), prediction, target)


# --- all of them --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 2, 6), (1, 3, 2, 6), (3, 2, 2, 6)])
def test_everything_is_finite(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """P13, P14: a batch of one, zero vectors, equal vectors, large ones, half precision under autocast."""
    for scale in (0.0, 1e-6, 1.0, 1e4):
        for rows in (drawn(2, *shape), torch.ones(2, *shape), torch.stack([drawn(*shape), torch.zeros(shape)])):
            prediction, target = (scale * rows).to(dtype).requires_grad_().unbind()
            prevention = made(name, 6)
            prediction.retain_grad(), target.retain_grad()
            with torch.autocast("cpu", torch.bfloat16):
                term = value(prevention, prediction, target)
            term.backward()
            assert term.isfinite()
            for x in (prediction, target, *prevention.parameters()):
                assert x.grad is None or x.grad.isfinite().all()


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_packed_rows_are_finite_too(name: str, scale: float) -> None:
    if KINDS[name][1].get("over", "all") == "all":
        for rows in (1, 5):
            a, b = ((scale * drawn(rows, 6, seed=seed)).float().requires_grad_() for seed in (0, 1))
            term = loss(name, a, b)
            term.backward()
            assert term.isfinite() and a.grad.isfinite().all()


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_right_with_and_without_that_of_the_target(name: str) -> None:
    """P14, P19."""
    a, b = drawn(4, 3, 2, 3).requires_grad_(), drawn(4, 3, 2, 3, seed=1).requires_grad_()
    prevention = made(name, 3).double()
    if name != "dino":  # whose targets never have one
        assert torch.autograd.gradcheck(lambda x, y: value(prevention, x, y), (a, b))
    if name in COMPARING:
        assert torch.autograd.gradcheck(lambda x: value(prevention, x, b.detach()), (a,))
        (alone,) = torch.autograd.grad(value(prevention, a, b.detach()), a)
        torch.testing.assert_close(alone, torch.autograd.grad(value(prevention, a, b), a)[0])


@pytest.mark.parametrize("name", [name for name in KINDS if name != "inverse dynamics"])
def test_autocast_changes_nothing(name: str) -> None:
    """Of statistics; what a perceptron before them does is its own affair."""
    a, b = (drawn(6, 3, 2, 6, seed=seed).float().requires_grad_() for seed in (0, 1))
    prevention = made(name, 6)
    term = value(prevention, a, b)
    gradients = torch.autograd.grad(term, (a, b), allow_unused=True)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = value(prevention, a, b)
    assert torch.equal(mixed, term)
    for one, other in zip(torch.autograd.grad(mixed, (a, b), allow_unused=True), gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("name", KINDS)
def test_looking_changes_nothing_and_a_projector_is_looked_through(name: str) -> None:
    a, b = drawn(4, 3, 2, 6).float(), drawn(4, 3, 2, 6, seed=1).float()
    prevention = made(name, 6, projector=(9, 5)).eval()
    before = {key: tensor.clone() for key, tensor in prevention.state_dict().items()}
    first = value(prevention, a, b)
    assert torch.equal(value(prevention, a, b), first)
    first.backward()
    assert all(p.grad.abs().sum() > 0 for p in prevention.parameters() if p.dim() == 2 and p.requires_grad)
    if hasattr(prevention, "after_step"):
        torch.no_grad()(prevention.after_step)(0)
    for key, tensor in prevention.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=1e-6, atol=1e-6)  # a teacher interpolates between equals


@pytest.mark.parametrize("name", [name for name in COMPARING if name not in ("hinge", "wmse in parts")])
@given(rows=ROWS, width=WIDTHS, seed=SEEDS)
def test_rows_may_be_in_any_order(name: str, rows: int, width: int, seed: int) -> None:
    """Beside those whose partners are drawn by place."""
    if KINDS[name][1].get("over", "all") != "all" or (name.startswith("wmse") and rows <= width + 1):
        return
    a, b = drawn(2, rows, width, seed=seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(name, a[order], b[order]), loss(name, a, b), rtol=1e-5, atol=1e-7)


# --- each by itself -----------------------------------------------------------------------------------------------------


@given(rows=st.integers(3, 40), width=WIDTHS, seed=SEEDS)
def test_barlow_does_not_see_a_scale_and_a_shift_of_each_dimension(rows: int, width: int, seed: int) -> None:
    """P11."""
    a, b = drawn(2, rows, width, seed=seed)
    scales, shift = 0.1 + drawn(2, width, seed=seed + 1).abs(), 3 * drawn(2, width, seed=seed + 2)
    moved = loss("barlow", a * scales[0] + shift[0], b * scales[1] + shift[1])
    torch.testing.assert_close(moved, loss("barlow", a, b), rtol=1e-6, atol=1e-8)
    assert loss("barlow", -a, b) >= 0


@given(width=st.integers(1, 6), seed=SEEDS)
def test_barlow_is_zero_where_the_correlation_is_the_identity_and_nowhere_else(width: int, seed: int) -> None:
    """P11."""
    z = drawn(30, width, seed=seed)
    z = torch.linalg.qr(z - z.mean(0)).Q
    assert loss("barlow", z, 7 * z + 1).item() == pytest.approx(0, abs=1e-9)
    for other in (z + 0.1 * drawn(30, width, seed=seed + 1), torch.cat([z[:, :1], z[:, :-1]], 1) if width > 1 else -z):
        assert loss("barlow", z, other, off_diagonal=1.0) > 1e-4


@given(rows=ROWS, width=WIDTHS, seed=SEEDS, temperature=st.floats(0.05, 2), both=st.booleans())
def test_infonce_lies_between_zero_and_its_bound(rows: int, width: int, seed: int, temperature: float, both: bool) -> None:
    """P12."""
    a, b = drawn(2, rows, width, seed=seed)
    among = 2 * rows - 1 if both else rows
    entropy = loss("infonce", a, b, temperature=temperature, negatives="both" if both else "targets")
    assert 0 <= entropy <= math.log(among) + 2 / temperature
    assert loss("infonce", a, a, temperature=temperature) <= math.log(rows) + 1e-9


@given(rows=ROWS, width=WIDTHS, scale=SCALES, seed=SEEDS)
def test_infonce_does_not_see_a_rotation_of_both_nor_lengths(rows: int, width: int, scale: float, seed: int) -> None:
    """P12."""
    a, b = drawn(2, rows, width, seed=seed)
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    rotation = torch.linalg.qr(drawn(width, width, seed=seed + 1)).Q
    for options in ({}, {"negatives": "both", "symmetric": True}):
        expected = loss("infonce", a, b, **options)
        torch.testing.assert_close(loss("infonce", a @ rotation, b @ rotation, **options), expected)
        torch.testing.assert_close(loss("infonce", scale * a, b / scale, **options), expected)


@given(width=st.integers(1, 8), spare=st.integers(4, 40), scale=SCALES, seed=SEEDS)
def test_whitening_gives_the_identity_and_forgets_linear_maps_up_to_a_rotation(
    width: int, spare: int, scale: float, seed: int
) -> None:
    z = drawn(width + spare, width, seed=seed)
    change = torch.linalg.qr(drawn(width, width, seed=seed + 1)).Q * torch.linspace(1, 5, width) * scale
    plain, changed = whitened(z, 0.0), whitened(z @ change + 3, 0.0)
    torch.testing.assert_close(plain.T @ plain / (len(z) - 1), torch.eye(width).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(changed @ changed.T, plain @ plain.T, atol=1e-3, rtol=1e-3)


@given(width=st.integers(1, 6), scale=st.floats(0.1, 100), seed=SEEDS)
def test_whitened_distance_is_between_zero_and_four_and_free_of_scale(width: int, scale: float, seed: int) -> None:
    a, b = drawn(2, width + 10, width, seed=seed)
    torch.testing.assert_close(loss("wmse", scale * a, b + 1), loss("wmse", a, b), rtol=1e-4, atol=1e-5)
    assert 0 <= loss("wmse", a, b) <= 4
    assert loss("wmse", a, 2 * a).item() == pytest.approx(0, abs=1e-6)


@given(rows=st.integers(1, 20), width=WIDTHS, margin=st.floats(0.01, 10), scale=st.floats(0, 100), seed=SEEDS)
def test_the_hinge_is_between_zero_and_the_margin_for_perfect_predictions(
    rows: int, width: int, margin: float, scale: float, seed: int
) -> None:
    z = scale * drawn(rows, width, seed=seed)
    assert -1e-9 <= loss("hinge", z, z, margin=margin) <= margin * (1 + 1e-6)


@given(rows=ROWS, width=WIDTHS, seed=SEEDS)
def test_choosing_prototypes_costs_at_least_the_entropy_of_the_target(rows: int, width: int, seed: int) -> None:
    a, b = drawn(2, rows, width, seed=seed)
    prevention = made("dino", width).double()
    wanted = (prevention.head(b) / 0.04).softmax(-1)
    assert value(prevention, a, b) >= torch.special.entr(wanted).sum(-1).mean() - 1e-9
    assert value(prevention, a, b) <= math.log(6) + 2 / 0.1
    same = made("dino", width, temperature=0.04).double()
    torch.testing.assert_close(value(same, b, b), torch.special.entr(wanted).sum(-1).mean())


@given(rows=ROWS, width=WIDTHS, scale=SCALES, seed=SEEDS)
def test_the_squared_distance_of_vicreg_is_that_behind_the_projector(rows: int, width: int, scale: float, seed: int) -> None:
    a, b = drawn(2, rows, width, seed=seed)
    alone = {"std": 0.0, "cov": 0.0, "inv": 2.0}
    torch.testing.assert_close(loss("vicreg", a, b, **alone), 2 * F.mse_loss(a, b))
    torch.testing.assert_close(loss("vicreg", scale * a, scale * b, **alone), scale**2 * loss("vicreg", a, b, **alone))
    prevention = made("vicreg", width, projector=(7, 5), **alone).double()
    seen = prevention.projector(a), prevention.projector(b)
    torch.testing.assert_close(value(prevention, a, b), 2 * F.mse_loss(*seen))
