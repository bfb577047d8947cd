"""What is passed on is what came in; of a window its last step."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from hjepa.contracts import Spec, States
from hjepa_encoders.identity import Identity

TOKENS = torch.randn(2, 3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
"""(B, T, W, N, D)."""
MAPS = torch.randn(2, 3, 4, 2, 8, 7, generator=torch.Generator().manual_seed(1))
"""(B, T, W, C, H, W')."""
TIME = torch.tensor([[3, 7, 11]] * 2)


def test_a_single_step_is_passed_on() -> None:
    spec = Spec(width=5, grid=(2, 3), ticks=(3, 7, 11), actions=2, maps=((2, 8, 7),))
    encoder = Identity(spec)
    features = encoder(States(TOKENS[:, :, 0], TIME, (2, 3), maps=(MAPS[:, :, 0],)))
    assert encoder.spec == spec
    assert torch.equal(features.tokens, TOKENS[:, :, 0]) and torch.equal(features.maps[0], MAPS[:, :, 0])


def test_of_a_window_the_last_step_is_kept() -> None:
    encoder = Identity(Spec(width=5, grid=(4, 2, 3), ticks=(3, 7, 11), maps=((8, 8, 7),), window=4))
    folded = rearrange(TOKENS, "b t w n d -> b t (w n) d"), rearrange(MAPS, "b t w c h v -> b t (w c) h v")
    features = encoder(States(folded[0], TIME, (4, 2, 3), maps=(folded[1],)))
    assert encoder.spec == Spec(width=5, grid=(2, 3), ticks=(3, 7, 11), maps=((2, 8, 7),))
    assert torch.equal(features.tokens, TOKENS[:, :, 3]) and torch.equal(features.maps[0], MAPS[:, :, 3])


def test_maps_alone_are_passed_on() -> None:
    features = Identity(Spec(maps=((2, 8, 7),)))(States(TOKENS[:, :, 0, :0, :0], TIME, maps=(MAPS[:, :, 0],)))
    assert features.tokens.shape == (2, 3, 0, 0) and torch.equal(features.maps[0], MAPS[:, :, 0])


def test_several_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="fuses streams"):
        Identity(Spec(parts=(Spec(width=5), Spec(width=5))))


def test_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="no layer last"):
        Identity(Spec(width=5))(States(TOKENS[:, :, 0], TIME), layers=("last",))
