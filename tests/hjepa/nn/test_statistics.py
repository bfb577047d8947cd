from __future__ import annotations

import pytest
import torch

from hjepa.errors import Mistake
from hjepa.nn.statistics import at_least_float32, grouped, row_mean, unit, without_autocast

B, T, N, D = 2, 3, 4, 5


def embedding() -> torch.Tensor:
    """Every row says where it lies: 100 b + 10 t + n."""
    b, t, n = torch.arange(B)[:, None, None], torch.arange(T)[None, :, None], torch.arange(N)[None, None]
    return (100 * b + 10 * t + n)[..., None].expand(B, T, N, D).double()


def rows(over: str) -> list[list[int]]:
    return [sorted(group[:, 0].int().tolist()) for group in grouped(embedding(), over)]


def test_all_is_one_group_of_every_row() -> None:
    assert rows("all") == [sorted(100 * b + 10 * t + n for b in range(B) for t in range(T) for n in range(N))]


def test_step_is_a_group_a_time_step() -> None:
    assert rows("step") == [sorted(100 * b + 10 * t + n for b in range(B) for n in range(N)) for t in range(T)]


def test_batch_is_the_first_step() -> None:
    assert rows("batch") == [sorted(100 * b + n for b in range(B) for n in range(N))]


def test_time_is_a_group_a_token_of_a_sample() -> None:
    assert rows("time") == [[100 * b + 10 * t + n for t in range(T)] for b in range(B) for n in range(N)]


def test_packed_rows_are_one_group_and_have_no_steps() -> None:
    packed = torch.randn(7, D)
    assert torch.equal(grouped(packed, "all"), packed[None])
    for over in ("step", "batch", "time"):
        with pytest.raises(Mistake, match=f"over: {over} .* `over: all`"):
            grouped(packed, over)


def test_halves_become_float32_and_doubles_stay() -> None:
    kept = {
        dtype: at_least_float32(torch.ones(1, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float16, torch.float64)
    }
    assert kept == {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float64: torch.float64}


def test_matrix_products_keep_their_precision_on_devices_with_autocast_and_without() -> None:
    for device in ("cpu", "meta"):
        x = torch.ones(2, 2, device=device)
        with torch.autocast("cpu", torch.bfloat16), without_autocast(x):
            assert (x @ x).dtype == torch.float32


def test_the_mean_of_nothing_is_zero_and_zero_vectors_have_no_direction() -> None:
    assert row_mean(torch.zeros(0, 3)) == 0
    assert torch.equal(row_mean(torch.arange(6.0).view(2, 3)), torch.tensor(2.5))
    z = torch.tensor([[3.0, 4], [0, 0], [3e-5, 4e-5]], dtype=torch.bfloat16)
    assert unit(z).dtype == torch.float32
    torch.testing.assert_close(unit(z).norm(dim=1), torch.tensor([1, 0, 0.5]), atol=0.01, rtol=0)
