"""P16: what holds for any energy whose z is searched for, and of free energies. Shape and seed are drawn, tensors come from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hjepa.contracts import Spec
from hjepa.nn.energies import descended, free_energy, least, starts
from hjepa.randomness import Key
from hjepa_latent.continuous import Continuous
from hjepa_latent.discrete import Discrete
from hjepa_latent.gaussian import Gaussian
from hjepa_latent.noisy import Noisy
from hjepa_latent.sparse import Sparse
from hjepa_latent.vq import VQ

SEEDS = st.integers(0, 2**31)
WIDTHS = st.integers(1, 6)
STEPS = st.integers(0, 12)
few = settings(max_examples=8, deadline=None)
"""For what searches until it has arrived."""
SPEC = Spec(width=5, ticks=tuple(range(4)))
SEARCHED: dict[str, Callable[..., nn.Module]] = {
    "ridge": lambda **options: Continuous(SPEC, width=3, ridge=0.3, **options),
    "free": lambda **options: Continuous(SPEC, width=3, **options),
    "sparse": lambda **options: Sparse(SPEC, width=3, weight=0.05, **options),
    "noisy": lambda **options: Noisy(SPEC, width=3, bound=0.7, **options),
}
EXACT = {"discrete": Discrete(SPEC, count=5, width=3)}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class World:
    """E(x, y, z) = |y - decoder(x, z)|^2 / D, of 4 samples with 3 steps each: bent, so that no step size is safe everywhere."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        self.context, self.target = drawn(4, 3, 1, 5, seed=seed), 2 * drawn(4, 3, 1, 5, seed=seed + 1)
        self.inner = nn.Parameter(scale * drawn(8, 7, seed=seed + 2))
        self.outer = nn.Parameter(drawn(7, 5, seed=seed + 3))
        self.key = Key.of(seed).fold(torch.arange(4))

    def __call__(self, z: Tensor) -> Tensor:
        hidden = torch.tanh(torch.cat((self.context[:, :, 0], z), dim=-1) @ self.inner)
        return (self.target[:, :, 0] - hidden @ self.outer).square().mean(dim=-1)

    def found(self, latent: nn.Module) -> tuple[Tensor, Tensor]:
        """The z that a latent infers, and its F."""
        z, _ = latent.eval().infer(self, self.context, self.target, self.key)
        return z, self(z) + latent.penalty(z)


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEARCHED)
@given(seed=SEEDS, steps=STEPS, scale=st.floats(0.1, 30))
def test_more_steps_never_raise_the_energy(name: str, seed: int, steps: int, scale: float) -> None:
    world = World(seed, scale)
    some, more = (world.found(SEARCHED[name](steps=count))[1] for count in (steps, steps + 3))
    assert (more <= some).all()


@pytest.mark.parametrize("name", SEARCHED)
@given(seed=SEEDS, restarts=st.integers(1, 4))
def test_more_restarts_never_raise_the_energy(name: str, seed: int, restarts: int) -> None:
    world = World(seed)
    few, more = (world.found(SEARCHED[name](steps=3, restarts=count))[1] for count in (restarts, restarts + 2))
    assert (more <= few).all()


@pytest.mark.parametrize("name", SEARCHED)
@given(seed=SEEDS)
def test_f_is_not_above_the_energy_of_z_that_says_nothing(name: str, seed: int) -> None:
    world = World(seed)
    assert (world.found(SEARCHED[name](steps=0))[1] <= world(torch.zeros(4, 3, 3))).all()


@given(seed=SEEDS)
def test_f_is_below_the_energy_of_every_code(seed: int) -> None:
    world, latent = World(seed), EXACT["discrete"]
    _, energy = world.found(latent)
    assert all((energy <= world(code.expand(4, 3, -1))).all() for code in latent.book.codes)


@few
@given(seed=SEEDS, width=WIDTHS, lam=st.floats(0.05, 3))
def test_f_is_below_the_energy_at_any_z_where_the_energy_is_convex(seed: int, width: int, lam: float) -> None:
    """And at its optimum equals the closed form: E = |y - W z|^2 / 2 + lambda |z|^2 / 2 (science of linear Gaussians)."""
    decoder, y = drawn(6, width, seed=seed).double(), drawn(3, 6, seed=seed + 1).double()
    latent = Continuous(SPEC, width=width, ridge=lam)

    def energy(z: Tensor) -> Tensor:
        return (y - z @ decoder.T).square().sum(dim=-1) / 2

    z, total = descended(energy, latent.penalty, latent._drawn_in, torch.zeros(3, width).double(), 600, 1.0)
    eye = torch.eye(width).double()
    torch.testing.assert_close(z, y @ decoder @ torch.linalg.inv(decoder.T @ decoder + lam * eye), atol=1e-4, rtol=1e-4)
    weighed = torch.linalg.inv(torch.eye(6).double() + decoder @ decoder.T / lam)
    torch.testing.assert_close(total, (y @ weighed * y).sum(dim=-1) / 2, atol=1e-6, rtol=1e-6)
    probed = z + drawn(20, 3, width, seed=seed + 2).double()
    assert (total <= energy(probed) + latent.penalty(probed) + 1e-9).all()


@few
@given(seed=SEEDS, width=WIDTHS, weight=st.floats(0.01, 2))
def test_ista_ends_where_its_step_changes_nothing(seed: int, width: int, weight: float) -> None:
    """Falls with each step, and its limit is the fixed point of the proximal step; entries that are 0 are exactly 0."""
    decoder, y = drawn(6, width, seed=seed).double(), drawn(3, 6, seed=seed + 1).double()
    latent = Sparse(SPEC, width=width, weight=weight)

    def energy(z: Tensor) -> Tensor:
        return (y - z @ decoder.T).square().sum(dim=-1) / 2

    zero = torch.zeros(3, width).double()
    totals = [descended(energy, latent.penalty, latent._thresholded, zero, steps, 1.0)[1] for steps in range(6)]
    assert all((later <= sooner).all() for sooner, later in pairwise(totals))
    z, _ = descended(energy, latent.penalty, latent._thresholded, zero, 600, 1.0)
    slope = -(y - z @ decoder.T) @ decoder
    torch.testing.assert_close(latent._thresholded(z - 0.01 * slope, torch.tensor(0.01)), z, atol=1e-5, rtol=1e-4)
    silent = (y @ decoder).abs().amax(dim=-1) < weight
    assert (z[silent] == 0).all()


def _round(seed: int) -> Tensor:
    """(5, 3): a decoder of which no direction is much longer than another, so that a search arrives."""
    before, after = (torch.linalg.qr(drawn(size, 3, seed=seed + size).double()).Q for size in (3, 5))
    return after * torch.tensor([1.2, 0.9, 0.6], dtype=torch.float64) @ before


@pytest.mark.parametrize("name", [*SEARCHED, *EXACT])
@few
@given(seed=SEEDS)
def test_the_gradient_of_f_is_that_of_the_energy_at_its_z(name: str, seed: int) -> None:
    """The envelope theorem, against differences of F; in float64, where the search has arrived."""
    decoder, y = _round(seed), drawn(2, 5, seed=seed + 1).double()
    direction = drawn(5, 3, seed=seed + 2).double()
    latent = SEARCHED[name](steps=400) if name in SEARCHED else EXACT[name]
    codes = EXACT["discrete"].book.codes.detach().double()

    def f(weights: Tensor) -> tuple[Tensor, Tensor]:
        def energy(z: Tensor) -> Tensor:
            return (y - z @ weights.T).square().sum(dim=-1)

        if name in EXACT:
            tried = torch.stack([energy(code.expand(2, -1)) for code in codes])
            z = codes[tried.argmin(dim=0)]
        else:
            proximal = {"sparse": "_thresholded", "noisy": "_within"}.get(name, "_drawn_in")
            z = least(energy, latent.penalty, getattr(latent, proximal), torch.zeros(1, 2, 3).double(), 400, 0.5)
        return z, (energy(z) + latent.penalty(z)).sum()

    weights = decoder.clone().requires_grad_()
    z, total = f(weights)
    assert not z.requires_grad
    (slope,) = torch.autograd.grad(total, weights)
    step = 1e-5
    ahead, behind = f(decoder + step * direction)[1], f(decoder - step * direction)[1]
    torch.testing.assert_close((slope * direction).sum(), (ahead - behind) / (2 * step), atol=1e-3, rtol=1e-3)


@given(seed=SEEDS, count=st.integers(1, 5))
def test_starts_are_the_same_however_many_there_are(seed: int, count: int) -> None:
    key = Key.of(seed).fold(torch.arange(4))
    few, more = starts(count, (4, 3), 2, key), starts(count + 2, (4, 3), 2, key)
    assert few.shape == (count, 4, 3, 2) and torch.equal(few, more[:count])
    assert torch.equal(starts(2, (1, 3), 2, Key(key.word[1:2])), more[:2, 1:2])
    assert not few[0].any() and (more[1] != more[2]).all()


# --- domains ----------------------------------------------------------------------------------------------------------


@given(seed=SEEDS)
def test_z_stays_in_its_domain(seed: int) -> None:
    world = World(seed)
    z, _ = world.found(Noisy(SPEC, width=3, bound=0.7, restarts=3))
    assert (z.norm(dim=-1) <= 0.7 * (1 + 1e-6)).all()
    for latent in (Discrete(SPEC, count=4, width=3), VQ(SPEC, count=4, width=3)):
        z, _ = world.found(latent)
        assert (z[..., None, :] == latent.book.codes).all(dim=-1).any(dim=-1).all()


LATENTS = {
    **{name: make() for name, make in SEARCHED.items()},
    "discrete": Discrete(SPEC),
    "vq": VQ(SPEC),
    "gaussian": Gaussian(SPEC),
}


@pytest.mark.parametrize("name", LATENTS)
@given(seed=SEEDS)
def test_penalties_are_never_negative(name: str, seed: int) -> None:
    z = drawn(2, 3, LATENTS[name].width, seed=seed)
    penalty = LATENTS[name].penalty(z)
    assert penalty.shape == (2, 3) and (penalty >= 0).all()
    assert (LATENTS[name].penalty(torch.zeros_like(z)) == 0).all()


# --- free energies ----------------------------------------------------------------------------------------------------


@given(seed=SEEDS, count=st.integers(1, 9), beta=st.floats(1e-3, 1e3), scale=st.floats(0.01, 100))
def test_the_soft_free_energy_lies_between_the_least_and_the_mean(seed: int, count: int, beta: float, scale: float) -> None:
    """Averaged form; the sum form, log K / beta lower, lies between least - log K / beta and the least."""
    energies = scale * drawn(count, 4, seed=seed).double()
    soft, lowest, slack = free_energy(energies, beta), energies.amin(dim=0), 1e-9 * scale
    assert (soft >= lowest - slack).all() and (soft <= energies.mean(dim=0) + slack).all()
    summed = -torch.logsumexp(-beta * energies, dim=0) / beta
    torch.testing.assert_close(soft - math.log(count) / beta, summed, atol=1e-9 * scale + 1e-11 / beta, rtol=1e-7)
    assert (summed <= lowest + slack).all() and (summed >= lowest - math.log(count) / beta - slack).all()


@given(seed=SEEDS, beta=st.floats(1e-3, 1e3), factor=st.floats(1, 100))
def test_the_soft_free_energy_falls_to_the_least_as_it_gets_colder(seed: int, beta: float, factor: float) -> None:
    energies = drawn(5, 4, seed=seed).double()
    assert (free_energy(energies, factor * beta) <= free_energy(energies, beta) + 1e-12).all()
    torch.testing.assert_close(free_energy(energies, 1e7), energies.amin(dim=0), atol=1e-6, rtol=0)
    assert torch.equal(free_energy(energies, math.inf), energies.amin(dim=0))
    torch.testing.assert_close(free_energy(energies, 1e-9), energies.mean(dim=0), atol=1e-6, rtol=0)


@given(seed=SEEDS, beta=st.floats(0.01, 100))
def test_the_order_of_codes_does_not_matter_and_equal_energies_are_kept(seed: int, beta: float) -> None:
    energies = drawn(5, 4, seed=seed).double()
    torch.testing.assert_close(free_energy(energies.flip(0), beta), free_energy(energies, beta))
    torch.testing.assert_close(free_energy(energies[:1].expand(5, 4), beta), energies[0])


@given(seed=SEEDS, beta=st.floats(0.3, 5))
def test_an_amortised_guess_bounds_the_soft_free_energy_of_a_linear_gaussian(seed: int, beta: float) -> None:
    """E_q[E] + KL(q from N(0, 1)) / beta >= F_beta for any q, and equal for the true posterior; z of width 1, closed forms."""
    y, w, (mean, log_std) = 1.5, 0.8, drawn(2, seed=seed).double()
    precision = 1 + beta * w**2

    def bound(mean: Tensor, std: Tensor) -> Tensor:
        energy = ((y - w * mean) ** 2 + w**2 * std**2) / 2
        return energy + (mean**2 + std**2 - 1 - 2 * std.log()) / 2 / beta

    soft = torch.tensor(y**2 / (2 * (1 + beta * w**2)) + math.log(precision) / (2 * beta)).double()
    assert bound(mean, log_std.exp()) >= soft - 1e-9
    best = torch.tensor(beta * w * y / precision).double(), torch.tensor(precision**-0.5).double()
    torch.testing.assert_close(bound(*best), soft)
    z = torch.linspace(-12, 12, 20001).double()
    weighed = (-beta * (y - w * z) ** 2 / 2 - z**2 / 2 - math.log(2 * math.pi) / 2).exp()
    torch.testing.assert_close(-torch.trapezoid(weighed, z).log() / beta, soft, atol=1e-6, rtol=1e-6)
