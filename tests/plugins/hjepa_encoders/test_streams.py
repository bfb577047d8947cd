"""Images and what is felt beside them: nothing of either is lost, and images alone are read as ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hjepa.contracts import Spec, States
from hjepa.nn.states import joined, window_spec, windows
from hjepa_encoders.conv import Conv
from hjepa_encoders.impala import Impala
from hjepa_encoders.patch_mlp import PatchMLP
from hjepa_encoders.streams import Streams

TICKS = (0, 1, 2)
IMAGES, FELT = Spec(maps=((2, 16, 12),), ticks=TICKS, actions=2), Spec(width=3, grid=(2,), ticks=TICKS, actions=2)
PLANE = Spec(width=2, grid=(16, 12), ticks=TICKS, actions=2)
WEIGHT = Spec(width=1, ticks=TICKS, actions=2)
SPEC = Spec(ticks=TICKS, actions=2, parts=(FELT, IMAGES, WEIGHT))


def _rested(conv: Conv) -> Conv:
    """At rest, where its head has seen a batch: no sample sees another."""
    conv.head[1].seen.fill_(1)
    return conv.eval()


READERS = {
    "conv": lambda spec: Conv(spec, width=8, base=4, stages=2),
    "conv with a head": lambda spec: _rested(Conv(spec, width=8, base=4, stages=2, head=6)),
    "impala": lambda spec: Impala(spec, width=8, channels=(4, 4)),
    "patch_mlp": lambda spec: PatchMLP(spec, width=8, hidden=6),
    "places": lambda spec: Impala(spec, width=8, channels=(4, 4), spatial=True),
}


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _time(batch: int = 2) -> Tensor:
    return torch.arange(3).expand(batch, -1)


def _images(frames: Tensor) -> States:
    return States(frames.new_zeros(*frames.shape[:2], 0, 0), _time(len(frames)), maps=(frames,))


def _states(**other: Tensor) -> States:
    given = {
        "frames": _drawn(2, 3, 2, 16, 12),
        "felt": _drawn(2, 3, 2, 3, seed=1),
        "weight": _drawn(2, 3, 1, 1, seed=2),
    } | other
    return joined([States(given["felt"], _time(), (2,)), _images(given["frames"]), States(given["weight"], _time())])


def _made(name: str, spec: Spec = SPEC) -> Any:
    torch.manual_seed(0)
    return READERS[name](spec)


@pytest.mark.parametrize("name", READERS)
def test_every_number_of_every_stream_is_in_every_token(name: str) -> None:
    encoder, felt, weight, frames = _made(name), _drawn(2, 3, 2, 3), _drawn(2, 3, 1, 1), _drawn(2, 3, 2, 16, 12)
    given = [felt.requires_grad_(), weight.requires_grad_(), frames.requires_grad_()]
    tokens = encoder(_states(felt=felt, weight=weight, frames=frames)).tokens
    for place in range(tokens.shape[2]):
        for gradient in torch.autograd.grad(tokens[:, :, place].square().sum(), given[:2], retain_graph=True):
            assert gradient.ne(0).all()
    assert torch.autograd.grad(tokens.sum(), frames)[0].any()
    assert encoder.spec == Spec(width=8, grid=encoder.spec.grid, ticks=TICKS, actions=2)
    assert tokens.shape == (2, 3, encoder.spec.tokens, 8)


@pytest.mark.parametrize("name", READERS)
def test_a_step_and_a_sample_depend_on_themselves_alone(name: str) -> None:
    """P28, to the last bit, in every stream."""
    encoder, felt = _made(name), _drawn(2, 3, 2, 3, seed=1)
    felt[1, 2] += 1
    before, after = (encoder(states).tokens for states in (_states(), _states(felt=felt)))
    same = (before == after).all(-1)
    assert not same[1, 2].any()
    same[1, 2] = True
    assert same.all()


@pytest.mark.parametrize("name", READERS)
def test_images_alone_are_read_alike_as_a_part_or_by_themselves(name: str) -> None:
    frames = _drawn(2, 3, 2, 16, 12)
    alone, part = _made(name, IMAGES), _made(name, Spec(ticks=TICKS, actions=2, parts=(IMAGES,)))
    states = States(frames.new_zeros(2, 3, 0, 0), _time(), parts=(_images(frames),))
    assert torch.equal(alone(_images(frames)).tokens, part(states).tokens)


@pytest.mark.parametrize("name", READERS)
def test_tokens_in_a_plane_are_read_as_a_map_of_them(name: str) -> None:
    """In their order, alone or beside others."""
    frames = _drawn(2, 3, 2, 16, 12)
    tokens = States(frames.flatten(3).mT, _time(), (16, 12))
    assert torch.equal(_made(name, PLANE)(tokens).tokens, _made(name, IMAGES)(_images(frames)).tokens)
    states = _states(frames=frames)
    beside = replace(states, parts=(states.parts[0], tokens, states.parts[2]))
    made = _made(name, replace(SPEC, parts=(FELT, PLANE, WEIGHT)))
    assert torch.equal(made(beside).tokens, _made(name)(states).tokens)


@pytest.mark.parametrize("name", ["conv", "impala", "places", "patch_mlp"])
def test_few_numbers_count_as_much_as_many_at_the_start(name: str) -> None:
    """Half of a token each, over many draws of the weights, and unit variance of unit variance together."""
    draws = []
    for seed in range(40):
        torch.manual_seed(seed)
        draws.append(READERS[name](SPEC).out.weight.detach().square())
    power = torch.stack(draws).mean((0, 1))
    assert power[-7:].sum() == pytest.approx(0.5, abs=0.05)
    assert power[:-7].sum() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", READERS)
def test_tokens_that_are_not_valid_have_no_influence(name: str) -> None:
    """P14."""
    encoder, states = _made(name), _states()
    valid = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(1)) < 0.5
    found = []
    for fill in (0.0, torch.nan):
        felt = replace(states.parts[0], tokens=states.parts[0].tokens.masked_fill(~valid[..., None], fill), valid=valid)
        found.append(encoder(replace(states, parts=(felt, *states.parts[1:]))).tokens)
    assert torch.equal(*found) and found[0].isfinite().all()


@pytest.mark.parametrize("name", READERS)
def test_windows_are_read_whole(name: str) -> None:
    spec = window_spec(SPEC, 2, 2)
    encoder = _made(name, spec)
    felt, frames = _drawn(2, 3, 2, 3, seed=1), _drawn(2, 3, 2, 16, 12)
    whole = encoder(windows(_states(), [0], 2, 2)).tokens
    assert whole.shape == (2, 1, encoder.spec.tokens, 8)
    for step in (0, 1):
        felt[:, step] += 1
        assert not torch.allclose(whole, encoder(windows(_states(felt=felt), [0], 2, 2)).tokens)
        frames[:, step] += 1
        assert not torch.allclose(whole, encoder(windows(_states(frames=frames), [0], 2, 2)).tokens)
        felt[:, step] -= 1
        frames[:, step] -= 1


@pytest.mark.parametrize("name", READERS)
def test_autocast_stays_finite(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert _made(name)(_states()).tokens.isfinite().all()


@pytest.mark.parametrize("name", ["conv", "impala"])
def test_what_has_not_one_stream_of_images_is_refused(name: str) -> None:
    for parts, said in (((FELT, WEIGHT), "of the 2 streams that it is given none have maps"), ((IMAGES,) * 3, "3 have maps")):
        with pytest.raises(ValueError, match=said) as caught:
            _made(name, Spec(ticks=TICKS, parts=parts))
        assert str(caught.value).startswith(f"{name} reads one stream of images")
    with pytest.raises(ValueError, match=f"{name} reads images, .* latent_mlp reads tokens"):
        _made(name, WEIGHT)


def test_what_is_wrong_with_planes_is_said_of_planes() -> None:
    two = "reads one stream of images and lays tokens of others beside it; of the 3 streams that it is given 2 have tokens in a plane"
    with pytest.raises(ValueError, match=f"conv {two}$"):
        _made("conv", Spec(ticks=TICKS, parts=(PLANE, FELT, PLANE)))
    hint = "tokens that lie in a plane are read one step at a time, with `window: 1`"
    with pytest.raises(ValueError, match=f"impala reads images, and what it is given has no maps; {hint}$"):
        _made("impala", window_spec(PLANE, 2, 2))
    with pytest.raises(ValueError, match=f"of the 2 streams that it is given none have maps; {hint}$"):
        _made("conv", window_spec(Spec(ticks=TICKS, parts=(PLANE, FELT)), 2, 2))
    with pytest.raises(ValueError, match="given 2 have maps"):
        _made("conv", window_spec(Spec(ticks=TICKS, parts=(IMAGES, PLANE, IMAGES)), 2, 2))


@pytest.mark.parametrize("name", READERS)
def test_tokens_of_a_plane_that_are_not_valid_are_read_as_zeros(name: str) -> None:
    encoder, tokens = _made(name, PLANE), _drawn(2, 3, 192, 2)
    valid = torch.rand(2, 3, 192, generator=torch.Generator().manual_seed(1)) < 0.8
    zeros, unknown = (tokens.masked_fill(~valid[..., None], fill) for fill in (0.0, torch.nan))
    expected = encoder(States(zeros, _time(), (16, 12))).tokens
    assert torch.equal(encoder(States(unknown, _time(), (16, 12), valid)).tokens, expected) and expected.isfinite().all()


def test_places_are_given_the_same_beside_them() -> None:
    streams, states = Streams("conv", SPEC), _states()
    x = _drawn(2, 3, 5, 4)
    both = streams.joined(x, states)
    assert streams.beside == 7 and torch.equal(both[..., :4], x)
    expected = torch.cat((states.parts[0].tokens.flatten(2), states.parts[2].tokens.flatten(2)), dim=-1)
    assert all(torch.equal(both[:, :, place, 4:], expected) for place in range(5))
