"""Methods of OpenCV, on shifts that are known."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from hjepa.errors import Mistake
from hjepa_motion.classical import estimated


@pytest.mark.parametrize("method", ["dis", "farneback"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_shift_is_found_with_its_sign_and_its_length(method: str, channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scene = F.interpolate(torch.rand(2, channels, 20, 20, generator=generator), (80, 80), mode="bicubic").clamp(0, 1)
    first, second = (
        scene[:, :, 10:58, 10:58],
        scene[:, :, 9:57, 12:60],
    )  # what was at x is now at x - 2, and one row further down
    found = estimated(method, torch.stack([first, second, first], dim=1))
    assert found.shape == (2, 2, 2, 48, 48) and found.dtype == torch.float32
    inner = found[..., 10:-10, 10:-10].mean(dim=(0, 3, 4))
    torch.testing.assert_close(inner, torch.tensor([[-2.0, 1.0], [2.0, -1.0]]), atol=0.15, rtol=0)


def test_where_opencv_is_missing_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(Mistake, match=r"'dis' is a method of OpenCV, which is not installed: pip install 'hjepa\[flow\]'"):
        estimated("dis", torch.zeros(1, 2, 1, 32, 32))
