"""The vision transformer: masked patches are gone, places are kept, a subset is encoded as it would be alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hjepa.contracts import Packed, Spec, States
from hjepa.nn import grid_positions
from hjepa.nn.packing import packed
from hjepa_attention.sdpa import SDPA
from hjepa_encoders.vit import SIZES, ViT

IMAGE = Spec(maps=((3, 8, 12),), ticks=(0, 1))
CLIP = Spec(maps=((4 * 2, 8, 12),), ticks=(3, 7), window=4)
"""Four frames of two channels."""
KINDS: dict[str, dict[str, Any]] = {
    "added": {},
    "rotary": {"rotary": True},
    "registers": {"registers": 2, "rotary": True},
    "causal": {"block_causal": True},
    "causal rotary": {"block_causal": True, "rotary": True},
}


def made(spec: Spec, **options: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(spec, **{"width": 24, "depth": 2, "heads": 2, "patch": 4, "attention": SDPA, **options})


def frames(spec: Spec, batch: int, seed: int = 0) -> States:
    shape = (batch, len(spec.ticks), *spec.maps[0])
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return States(maps.new_zeros(*shape[:2], 0, 0), torch.tensor(spec.ticks).expand(batch, -1), maps=(maps,))


def drawn(of: ViT, rows: int, seed: int) -> Packed:
    """Some patches of each row, another number of each."""
    chosen = torch.rand(rows, of.spec.tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    chosen[:, seed % of.spec.tokens] = True
    return packed(chosen, of.spec.grid, "some")


kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_a_token_a_patch(kind: str) -> None:
    image, clip = made(IMAGE, **KINDS[kind]), made(CLIP, tubelet=2, **KINDS[kind])
    assert image.spec == Spec(width=24, grid=(2, 3), ticks=(0, 1))
    assert image(frames(IMAGE, 5)).tokens.shape == (5, 2, 6, 24)
    assert clip.spec == Spec(width=24, grid=(2, 2, 3), ticks=(3, 7))
    assert clip(frames(CLIP, 5)).tokens.shape == (5, 2, 12, 24)


@kinds
def test_to_keep_everything_is_to_encode_everything(kind: str) -> None:
    """I11."""
    encoder, below = made(CLIP, **KINDS[kind]), frames(CLIP, 3)
    everything = packed(torch.ones(6, 24, dtype=torch.bool), encoder.spec.grid)
    kept = encoder.encode_kept(below, everything)
    torch.testing.assert_close(kept.values.view(3, 2, 24, 24), encoder(below).tokens, atol=1e-5, rtol=1e-5)


@kinds
def test_what_is_masked_changes_nothing(kind: str) -> None:
    """I12, to the last bit; and the same change changes every token of the whole picture."""
    encoder, below = made(IMAGE, **KINDS[kind]), frames(IMAGE, 3)
    keep = drawn(encoder, 6, seed=1)
    shown = torch.zeros(6, 6, dtype=torch.bool)
    shown[keep.row.repeat_interleave(keep.lengths), keep.values[:, 0]] = True
    hidden = ~shown.view(3, 2, 1, 2, 3).repeat_interleave(4, -2).repeat_interleave(4, -1)
    changed = replace(below, maps=(below.maps[0] + hidden,))
    assert torch.equal(encoder.encode_kept(below, keep).values, encoder.encode_kept(changed, keep).values)
    assert not torch.isclose(encoder(below).tokens, encoder(changed).tokens).all(-1).any()


@kinds
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_a_set_is_encoded_as_if_it_were_alone(kind: str, seed: int) -> None:
    """Packed equals per sequence, forward and backward."""
    encoder, below = made(CLIP, tubelet=2, **KINDS[kind]), frames(CLIP, 2, seed)
    keep = drawn(encoder, 4, seed)
    whole = encoder.encode_kept(below, keep)
    assert torch.equal(whole.positions, keep.positions) and torch.equal(whole.lengths, keep.lengths)
    ends, parts = keep.lengths.cumsum(0), []
    for row, (end, length) in enumerate(zip(ends, keep.lengths, strict=True)):
        own = slice(end - length, end)
        alone = Packed(keep.values[own], length[None], keep.positions[own], torch.tensor([row]))
        parts.append(encoder.encode_kept(below, alone).values)
    torch.testing.assert_close(whole.values, torch.cat(parts), atol=1e-5, rtol=1e-5)
    weights = [weight for weight in encoder.parameters() if weight.numel()]
    gradients = (torch.autograd.grad(x.square().mean(), weights) for x in (whole.values, torch.cat(parts)))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@kinds
def test_the_order_of_the_kept_is_that_of_the_features(kind: str) -> None:
    encoder, below = made(CLIP, **KINDS[kind]), frames(CLIP, 1)
    keep = drawn(encoder, 2, seed=3)
    first, second = keep.lengths.tolist()
    order = torch.cat((torch.randperm(first, generator=torch.Generator().manual_seed(0)), first + torch.arange(second)))
    turned = replace(keep, values=keep.values[order], positions=keep.positions[order])
    expected = encoder.encode_kept(below, keep).values[order]
    torch.testing.assert_close(encoder.encode_kept(below, turned).values, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
def test_tokens_know_where_they_are(rotary: bool) -> None:
    """The same two patches in other places give other features; rotary, only how far apart they are counts."""
    encoder = made(IMAGE, rotary=rotary)
    below = frames(Spec(maps=((3, 8, 12),), ticks=(0,)), 1)
    same = replace(below, maps=(below.maps[0][..., :4, :4].repeat(1, 1, 1, 2, 3),))
    encoded = [
        encoder.encode_kept(same, packed(torch.zeros(1, 6, dtype=torch.bool).index_fill(1, torch.tensor(pair), True), (2, 3)))
        for pair in ([0, 1], [4, 5], [0, 2])
    ]
    assert torch.allclose(encoded[0].values, encoded[1].values, atol=1e-5) == rotary
    if not rotary:
        assert not torch.allclose(encoded[0].values, encoded[2].values, atol=1e-3)


@pytest.mark.parametrize("kind", ["causal", "causal rotary"])
def test_no_frame_sees_a_later_one(kind: str) -> None:
    """P28, to the last bit, of the whole clip and of some of its patches."""
    encoder, below = made(CLIP, tubelet=2, **KINDS[kind]), frames(CLIP, 3)
    maps = below.maps[0].clone()
    maps[:, :, 4:] += 1  # the third frame and the fourth
    later, keep = replace(below, maps=(maps,)), drawn(encoder, 6, seed=2)
    before, after = encoder(below).tokens, encoder(later).tokens
    assert torch.equal(before[:, :, :6], after[:, :, :6])
    assert not torch.isclose(before[:, :, 6:], after[:, :, 6:]).all(-1).any()
    early = keep.positions[:, 0] == 0
    before, after = encoder.encode_kept(below, keep).values, encoder.encode_kept(later, keep).values
    assert torch.equal(before[early], after[early]) and not torch.isclose(before[~early], after[~early]).all(-1).any()


def test_without_it_every_frame_sees_the_others() -> None:
    encoder, below = made(CLIP), frames(CLIP, 1)
    maps = below.maps[0].clone()
    maps[:, :, -2:] += 1
    changed = encoder(replace(below, maps=(maps,))).tokens
    assert not torch.isclose(encoder(below).tokens, changed).all(-1).any()


def test_a_tubelet_is_its_pixels_of_all_its_frames_and_channels() -> None:
    below, encoder = frames(CLIP, 1), made(CLIP, tubelet=2)
    clip = below.maps[0].view(2, 4, 2, 8, 12)
    expected = clip[1, 2:4, :, 4:8, 8:12].flatten()
    place = grid_positions(encoder.spec.grid).tolist().index([1, 1, 2])
    assert torch.equal(encoder._patches(below)[0, 1, place], expected)


@pytest.mark.parametrize(
    ("size", "patch", "millions"),
    [
        ("tiny", 16, 5.486400),
        ("small", 16, 21.589632),
        ("base", 16, 85.646592),
        ("large", 16, 303.098880),
        ("huge", 14, 630.434560),
    ],
)
def test_sizes_are_those_of_the_papers(size: str, patch: int, millions: float) -> None:
    """Of the usual ViT of that name, without class token, learned positions and classifier."""
    with torch.device("meta"):
        encoder = ViT(Spec(maps=((3, 224, 224),)), size=size, patch=patch, attention=SDPA)
    assert sum(weight.numel() for weight in encoder.parameters()) == round(millions * 1e6)


def test_numbers_go_before_the_size() -> None:
    assert SIZES["giant"][:3] == (1408, 40, 16) and round(1408 * SIZES["giant"].mlp_ratio) == 6144
    encoder = ViT(IMAGE, size="small", depth=3, patch=4, mlp_ratio=2.0, attention=SDPA)
    assert (encoder.spec.width, len(encoder.blocks)) == (384, 3)
    assert encoder.blocks["block1"].mlp.layers[0].out_features == 768
    assert encoder.blocks["block1"].attention.heads == 6


def test_layers_are_the_blocks_and_keep_samples_and_steps() -> None:
    encoder, below = made(IMAGE, registers=2), frames(IMAGE, 3)
    given = encoder(below, ("block2", "block1"))
    assert {name: layer.shape for name, layer in given.layers.items()} == dict.fromkeys(("block1", "block2"), (3, 2, 6, 24))
    torch.testing.assert_close(encoder.norm(given.layers["block2"]), given.tokens)
    alone = encoder(replace(below, maps=(below.maps[0][1:2, 1:],)), ("block1",))
    torch.testing.assert_close(alone.layers["block1"][0, 0], given.layers["block1"][1, 1], atol=1e-5, rtol=1e-5)


def test_residual_projections_start_small() -> None:
    encoder = made(IMAGE, width=128, depth=8, heads=4)
    for block in encoder.blocks.values():
        assert block.attention.out.weight.std().item() == pytest.approx(16**-0.5 * 128**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        (Spec(maps=((3, 33, 33),)), {}, r"33 x 33 pixels cannot be cut into patches of 4: 33 = 8 \* 4 \+ 1$"),
        (Spec(maps=((3, 8, 14),)), {}, r"8 x 14 pixels cannot be cut into patches of 4: 14 = 3 \* 4 \+ 2$"),
        (Spec(maps=((21, 8, 8),), window=7), {"tubelet": 2}, r"7 frames cannot be cut into tubelets of 2: 7 = 3 \* 2 \+ 1"),
        (IMAGE, {"tubelet": 2}, r"1 frame cannot be cut into tubelets of 2: 1 = 0 \* 2 \+ 1"),
        (Spec(width=8), {}, "no maps; latent_mlp reads tokens"),
        (CLIP, {"rotary": True, "heads": 8}, "3 axes of positions need an even number of channels, at least 6; here are 3"),
        (IMAGE, {"width": 9, "heads": 3}, "2 axes of positions need an even number of channels, at least 4; here are 9"),
        (IMAGE, {"heads": 5}, "a width of 24 cannot be shared by 5 heads"),
        (CLIP, {"registers": 1, "block_causal": True}, "registers look at all frames"),
    ],
)
def test_what_cannot_be_is_refused_with_the_sum(spec: Spec, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(spec, **options)


def test_an_unknown_layer_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="no layer block3; it has block1 to block2"):
        made(IMAGE)(frames(IMAGE, 1), ("block1", "block3"))


@kinds
def test_a_batch_of_one_black_image_and_autocast_stay_finite(kind: str) -> None:
    encoder = made(CLIP, **KINDS[kind])
    below = frames(CLIP, 1)
    black = replace(below, maps=(torch.zeros_like(below.maps[0]),))
    with torch.autocast("cpu", torch.bfloat16):
        both = encoder(black).tokens.float().square().sum() + encoder.encode_kept(black, drawn(encoder, 2, 0)).values.sum()
    both.backward()
    gradients: list[Tensor] = [weight.grad for weight in encoder.parameters() if weight.numel()]
    assert both.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


def test_every_weight_learns_from_some_patches() -> None:
    encoder = made(IMAGE, registers=2, rotary=True)
    encoder.encode_kept(frames(IMAGE, 3), drawn(encoder, 6, 0)).values.square().mul(torch.arange(24)).mean().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in encoder.parameters())


def test_pixels_are_normed() -> None:
    below = frames(IMAGE, 2)
    normed = replace(below, maps=((below.maps[0] - 0.5) / 0.25,))
    one = made(IMAGE, pixel_mean=0.5, pixel_std=0.25)(below).tokens
    torch.testing.assert_close(one, made(IMAGE)(normed).tokens)
