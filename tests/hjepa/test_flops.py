"""What is counted is what is computed."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention
from trainings import SMALL, changed, parsed

from hjepa import flops


def test_a_product_there_and_back() -> None:
    x, weight = torch.rand(3, 5), torch.rand(5, 7, requires_grad=True)
    assert flops.counted(lambda: (x @ weight).sum().backward()) == 2 * (2 * 3 * 5 * 7)  # x needs no gradient


def test_attention_is_counted_on_every_device() -> None:
    query, key, value = torch.rand(3, 1, 2, 10, 4).unbind()
    assert flops.counted(lambda: scaled_dot_product_attention(query, key, value)) == 2 * (2 * 2 * 10 * 10 * 4)


def test_a_step_grows_with_its_batch_and_is_counted_on_a_few_samples() -> None:
    few, many = (flops.of_step(parsed(changed(SMALL, ("data.video.batch", batch)))) for batch in (4, 64))
    assert few > 0 and many == 16 * few


def test_a_level_that_is_frozen_is_not_back_propagated() -> None:
    frozen = changed(SMALL, ("levels.frame.frozen", True))
    assert flops.of_step(parsed(frozen)) < 0.7 * flops.of_step(parsed(SMALL))
