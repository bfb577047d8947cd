"""One token a patch, from its own surroundings alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Spec, States
from hjepa_encoders.patch_mlp import PatchMLP


def _states(frames: Tensor) -> States:
    batch, steps = frames.shape[:2]
    return States(frames.new_zeros(batch, steps, 0, 0), torch.arange(steps).expand(batch, -1), maps=(frames,))


def _frames(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _made(spec: Spec, **options: object) -> PatchMLP:
    torch.manual_seed(0)
    return PatchMLP(spec, **({"width": 8} | options))  # type: ignore[arg-type]


@given(
    sides=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    patch=st.integers(1, 6),
    depth=st.integers(1, 3),
    norm=st.booleans(),
)
def test_any_size_of_image_and_the_spec_says_what_comes(sides: tuple[int, int], patch: int, depth: int, norm: bool) -> None:
    encoder = _made(Spec(maps=((3, *sides),), ticks=(0, 1), actions=2), patch=patch, depth=depth, norm=norm)
    tokens = encoder(_states(_frames(2, 2, 3, *sides))).tokens
    assert encoder.spec == Spec(width=8, grid=tuple(-(-side // patch) for side in sides), ticks=(0, 1), actions=2)
    assert tokens.shape == (2, 2, encoder.spec.tokens, 8) and tokens.isfinite().all()


@pytest.mark.parametrize("patch", [1, 2, 5])
def test_every_pixel_is_seen_by_the_tokens_near_it_alone(patch: int) -> None:
    encoder, frames = _made(Spec(maps=((2, 20, 25),)), patch=patch, depth=2), torch.zeros(1, 1, 2, 20, 25)
    still = encoder(_states(frames)).tokens
    rows, columns = encoder.spec.grid
    for row, column in ((0, 0), (7, 3), (19, 24)):
        changed = frames.clone()
        changed[..., row, column] = 1
        seen = (encoder(_states(changed)).tokens != still).any(-1).view(rows, columns).nonzero()
        away = (seen * patch - torch.tensor([row, column])).abs().amax(1)
        assert len(seen) and away.max() < patch


def test_a_step_and_a_sample_depend_on_themselves_alone() -> None:
    """P28, to the last bit."""
    encoder, frames = _made(Spec(maps=((2, 20, 16),))), _frames(3, 4, 2, 20, 16)
    changed = frames.clone()
    changed[1, 2] += 1
    same = (encoder(_states(frames)).tokens == encoder(_states(changed)).tokens).all(-1)
    assert not same[1, 2].any()
    same[1, 2] = True
    assert same.all()


def test_channels_are_normed_by_their_own_pixels() -> None:
    spec, frames = Spec(maps=((2, 10, 10),)), _frames(1, 1, 2, 10, 10)
    mean, std = torch.tensor([0.1, 0.5]).view(2, 1, 1), torch.tensor([0.2, 2.0]).view(2, 1, 1)
    normed = _made(spec, pixel_mean=(0.1, 0.5), pixel_std=(0.2, 2.0))(_states(frames)).tokens
    torch.testing.assert_close(normed, _made(spec)(_states((frames - mean) / std)).tokens)
    with pytest.raises(ValueError, match="pixel_std has 3 numbers; write one, or one for each of 2 channels"):
        _made(spec, pixel_std=(1.0, 1.0, 1.0))


def test_what_is_felt_is_laid_beside_each_place() -> None:
    parts = (Spec(maps=((2, 10, 10),), ticks=(0, 1)), Spec(width=3, ticks=(0, 1)))
    encoder = _made(Spec(ticks=(0, 1), parts=parts))
    seen, time = _states(_frames(2, 2, 2, 10, 10)), torch.arange(2).expand(2, -1)

    def tokens(felt: Tensor) -> Tensor:
        empty = torch.zeros(2, 2, 0, 0)
        return encoder(States(empty, time, parts=(seen, States(felt, time)))).tokens

    assert (tokens(torch.zeros(2, 2, 1, 3)) != tokens(torch.ones(2, 2, 1, 3))).any(-1).all()


def test_there_are_no_layers_to_ask_for() -> None:
    with pytest.raises(ValueError, match="patch_mlp has no layer stage1"):
        _made(Spec(maps=((2, 10, 10),)))(_states(_frames(1, 1, 2, 10, 10)), ("stage1",))
