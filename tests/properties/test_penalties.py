"""What energies and penalties must do for any input: shape and seed are drawn, tensors come from them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hjepa.contracts import Here, Pair, Spec
from hjepa.randomness import Key
from hjepa.schedules import Schedule
from hjepa_energy.cosine import Cosine
from hjepa_energy.l1 import L1
from hjepa_energy.l2 import L2
from hjepa_energy.smooth_l1 import SmoothL1
from hjepa_prevention.ema import Ema
from hjepa_prevention.sigreg import Sigreg
from hjepa_prevention.vicreg import Vicreg

SEEDS = st.integers(0, 2**31)
WIDTHS = st.integers(1, 12)
ROWS = st.integers(2, 40)
SCALES = st.floats(0.01, 100)
ENERGIES = {"l1": L1(Spec(1)), "l2": L2(Spec(1)), "smooth_l1": SmoothL1(Spec(1), beta=0.7), "cosine": Cosine(Spec(1))}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def here(seed: int = 0) -> Here:
    return Here(lambda: None, lambda: None, lambda encoder: None, Key.of(0), Key.of(seed, 1), 1)


def vicreg(z: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    terms = Vicreg(Spec(z.shape[-1]), **({"std": 1.0, "cov": 1.0} | options)).terms(Pair(z, z, z), here())
    return terms["std"], terms["cov"]


def sigreg(z: Tensor, seed: int = 0, **options: object) -> Tensor:
    settings = {"weight": 1.0, "over": "all", "times_rows": False, "slices": 16} | options
    return Sigreg(Spec(z.shape[-1]), **settings).terms(Pair(z, z, z), here(seed))["normal"]


# --- energies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENERGIES)
@given(shape=st.lists(st.integers(1, 4), max_size=3), width=WIDTHS, scale=SCALES, seed=SEEDS)
def test_energies_are_zero_for_equals_never_negative_and_symmetric(
    name: str, shape: list[int], width: int, scale: float, seed: int
) -> None:
    """P9. The symmetry is claimed of all four."""
    a, b = scale * drawn(2, *shape, width, seed=seed)
    energy = ENERGIES[name]
    assert energy(a, b).shape == torch.Size(shape)
    assert (energy(a, a) == 0).all()
    assert (energy(a, b) >= 0).all()
    torch.testing.assert_close(energy(a, b), energy(b, a))


@given(rows=ROWS, width=WIDTHS, scale=SCALES, seed=SEEDS)
def test_energies_scale_as_they_say(rows: int, width: int, scale: float, seed: int) -> None:
    a, b = drawn(2, rows, width, seed=seed)
    torch.testing.assert_close(ENERGIES["l1"](scale * a, scale * b), scale * ENERGIES["l1"](a, b))
    torch.testing.assert_close(ENERGIES["l2"](scale * a, scale * b), scale**2 * ENERGIES["l2"](a, b))
    directed = a / a.norm(dim=-1, keepdim=True)  # the cosine forgets lengths, down to the shortest that have a direction
    torch.testing.assert_close(ENERGIES["cosine"](scale * directed, b), ENERGIES["cosine"](directed, b), atol=1e-7, rtol=1e-7)
    scaled = SmoothL1(Spec(1), beta=0.7 * scale)(scale * a, scale * b)
    torch.testing.assert_close(scaled, scale * ENERGIES["smooth_l1"](a, b))


@pytest.mark.parametrize("name", ENERGIES)
@given(width=st.integers(1, 5), seed=SEEDS)
def test_energies_have_the_right_gradient(name: str, width: int, seed: int) -> None:
    """P14, away from the kinks of absolute values."""
    a, b = drawn(2, 3, width, seed=seed)
    b = a + (b + b.sign() * 0.1)
    if name == "cosine":  # whose curvature is that of 1 / length²
        a, b = a + a.sign() * 0.3, b + b.sign() * 0.3
    assert torch.autograd.gradcheck(ENERGIES[name], (a.requires_grad_(), b.requires_grad_()))


@pytest.mark.parametrize("name", ENERGIES)
@given(rows=st.integers(1, 5), width=WIDTHS, scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]), seed=SEEDS)
def test_energies_are_finite_in_half_precision(name: str, rows: int, width: int, scale: float, seed: int) -> None:
    """P14."""
    for dtype in (torch.bfloat16, torch.float16):
        a, b = (drawn(2, rows, width, seed=seed).clamp(-1, 1) * scale).to(dtype)
        a.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = ENERGIES[name](a, b)
        value.mean().backward()
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert a.grad.isfinite().all()


@given(rows=ROWS, width=WIDTHS, seed=SEEDS)
def test_the_cosine_does_not_change_under_a_joint_rotation(rows: int, width: int, seed: int) -> None:
    a, b = nn.functional.normalize(drawn(2, rows, width, seed=seed), dim=-1)
    rotation = torch.linalg.qr(drawn(width, width, seed=seed + 1)).Q
    torch.testing.assert_close(ENERGIES["cosine"](a @ rotation, b @ rotation), ENERGIES["cosine"](a, b), atol=1e-7, rtol=1e-7)


# --- variance and covariance --------------------------------------------------------------------------------------------


@given(rows=ROWS, width=WIDTHS, gamma=st.floats(0.1, 3), seed=SEEDS)
def test_the_hinge_is_zero_exactly_where_every_dimension_varies_enough(rows: int, width: int, gamma: float, seed: int) -> None:
    """P10."""
    z = drawn(rows, width, seed=seed)
    deviation = (z.var(0) + 1e-4).sqrt()
    std, _ = vicreg(z, gamma=gamma)
    assert (std.item() == 0) == bool((deviation >= gamma).all())
    assert vicreg(z, gamma=deviation.min().item() * 0.999)[0].item() == 0
    assert vicreg(z, gamma=deviation.min().item() * 1.001)[0].item() > 0


@given(rows=ROWS, width=WIDTHS, seed=SEEDS)
def test_rows_may_be_in_any_order_and_anywhere(rows: int, width: int, seed: int) -> None:
    """P10: permutation of rows, and a shift of all of them."""
    z = drawn(rows, width, seed=seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    for other in (z[order], z + 10 * drawn(width, seed=seed + 1)):
        torch.testing.assert_close(torch.stack(vicreg(other)), torch.stack(vicreg(z)), atol=1e-9, rtol=1e-7)


@given(rows=ROWS, width=WIDTHS, seed=SEEDS)
def test_dimensions_may_be_in_any_order_and_of_any_sign(rows: int, width: int, seed: int) -> None:
    """P10."""
    z, generator = drawn(rows, width, seed=seed), torch.Generator().manual_seed(seed)
    order = torch.randperm(width, generator=generator)
    signs = torch.randint(0, 2, (width,), generator=generator) * 2 - 1
    torch.testing.assert_close(torch.stack(vicreg(z[:, order] * signs)), torch.stack(vicreg(z)), atol=1e-9, rtol=1e-7)


@given(rows=ROWS, width=WIDTHS, scale=SCALES, seed=SEEDS)
def test_covariance_grows_with_the_fourth_power_and_the_hinge_falls(rows: int, width: int, scale: float, seed: int) -> None:
    z = drawn(rows, width, seed=seed)
    (std, cov), (scaled_std, scaled_cov) = vicreg(z), vicreg(scale * z)
    torch.testing.assert_close(scaled_cov, scale**4 * cov, rtol=1e-6, atol=1e-9 * scale**4)
    assert (scaled_std <= std) if scale >= 1 else (scaled_std >= std)


@given(rows=ROWS, width=st.integers(2, 12), seed=SEEDS)
def test_the_two_ways_to_divide_differ_by_the_width_less_one(rows: int, width: int, seed: int) -> None:
    z = drawn(rows, width, seed=seed)
    torch.testing.assert_close(vicreg(z, covariance_by="dimension")[1], (width - 1) * vicreg(z)[1])


@given(rows=ROWS, width=WIDTHS, seed=SEEDS)
def test_the_covariance_is_never_below_zero_by_more_than_rounding(rows: int, width: int, seed: int) -> None:
    z = drawn(rows, width, seed=seed)
    assert vicreg(z.float())[1] >= -1e-5
    assert vicreg(z[:, :1])[1].abs() < 1e-9


# --- normal projections -------------------------------------------------------------------------------------------------


@given(rows=ROWS, width=WIDTHS, scale=SCALES, seed=SEEDS)
def test_normality_does_not_depend_on_the_order_of_rows_nor_on_signs(rows: int, width: int, scale: float, seed: int) -> None:
    z = scale * drawn(rows, width, seed=seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(sigreg(z[order]), sigreg(z))
    torch.testing.assert_close(sigreg(-z), sigreg(z))
    torch.testing.assert_close(sigreg(torch.cat([z, z])), sigreg(z))


@given(rows=ROWS, width=WIDTHS, scale=SCALES, seed=SEEDS)
def test_normality_lies_between_zero_and_what_waves_can_reach(rows: int, width: int, scale: float, seed: int) -> None:
    """|phi - exp(-t²/2)| is at most 2, so the statistic is at most 4 sqrt(2 pi); times rows it is rows as much."""
    z = scale * drawn(rows, width, seed=seed)
    assert 0 <= sigreg(z).item() <= 4 * math.sqrt(2 * math.pi)
    torch.testing.assert_close(sigreg(z, times_rows=True), rows * sigreg(z))


@given(rows=ROWS, width=WIDTHS, scale=SCALES, seed=SEEDS)
def test_the_gradient_of_normality_is_bounded(rows: int, width: int, scale: float, seed: int) -> None:
    """Each row moves the statistic by less than a constant over the number of rows, wherever it is."""
    z = (scale * drawn(rows, width, seed=seed)).requires_grad_()
    (gradient,) = torch.autograd.grad(sigreg(z), z)
    assert (gradient.norm(dim=1) * rows).max() < 8


@given(width=st.integers(1, 8), seed=st.integers(0, 1000))
def test_normality_grows_with_scale_shift_and_loss_of_rank(width: int, seed: int) -> None:
    """P13."""
    z = torch.special.ndtri((torch.argsort(drawn(400, width, seed=seed), dim=0) + 0.5) / 400)
    plain = sigreg(z, seed)
    for other in (2 * z, 0.4 * z, z + 1, torch.cat([z[:, :-1], torch.zeros(400, 1)], 1)):
        assert sigreg(other.double(), seed) > plain
    assert plain < 0.02


@given(seed=st.integers(0, 1000))
def test_a_rotation_changes_normality_only_by_the_choice_of_lines(seed: int) -> None:
    """P13: in expectation over lines it changes nothing."""
    z = drawn(60, 3, seed=seed) * torch.tensor([2.0, 1.0, 0.2])
    rotation = torch.linalg.qr(drawn(3, 3, seed=seed + 1)).Q
    torch.testing.assert_close(sigreg(z @ rotation, slices=512), sigreg(z, slices=512), rtol=0.25, atol=0.01)


# --- a moving teacher ---------------------------------------------------------------------------------------------------


@given(seed=SEEDS, scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e6]), momenta=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_a_teacher_stays_between_the_least_and_the_greatest_it_was_shown(seed: int, scale: float, momenta: list[float]) -> None:
    """P23, to the last bit."""
    encoder = nn.Linear(3, 4)
    history = scale * drawn(len(momenta) + 1, 4, 3, seed=seed).float()
    with torch.no_grad():
        encoder.weight.copy_(history[0])
    ema = Ema(Spec(4))
    ema.bind(encoder)
    for step, momentum in enumerate(momenta):
        ema.momentum = Schedule.of(momentum)
        with torch.no_grad():
            encoder.weight.copy_(history[step + 1])
        ema.after_step(step)
        shown = history[: step + 2]
        assert (ema.teacher.weight >= shown.amin(0)).all()
        assert (ema.teacher.weight <= shown.amax(0)).all()
