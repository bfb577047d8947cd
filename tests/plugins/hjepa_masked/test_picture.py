"""What a masked level draws: which panels, what is tinted, and principal components that depend on nothing but the states."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from hjepa.contracts import Packed, States
from hjepa.nn.packing import packed
from hjepa_masked import picture
from hjepa_masked.picture import CLIPPED, COLOURS, PALE, SHOWN, TINT, components, images, overlay


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def painted(
    batch: int, steps: int, window: int, grid: tuple[int, ...], families: Iterable[str], names: Iterable[str]
) -> Figure:
    """One target a family; images of three times as many pixels as tokens."""
    time, rows = torch.arange(steps).expand(batch, -1), batch * steps
    height, width = grid[-2:]
    maps = drawn(batch, steps, window * 3, 3 * height, 3 * width).sigmoid()
    below = States(maps.new_zeros(batch, steps, 0, 0), time, maps=(maps,))
    tokens = torch.Size(grid).numel()
    masks: dict[str, list[Packed]] = {}
    for seed, family in enumerate(families):
        chosen = drawn(rows, tokens, seed=seed) > 0
        masks[family] = [packed(chosen, grid, family), packed(~chosen, grid, family)]
    states = {name: States(drawn(batch, steps, tokens, 5, seed=n), time, grid) for n, name in enumerate(names)}
    figure = Figure(layout="constrained")
    picture.draw(figure, below, window, masks, states)
    return figure


def pictures(figure: Figure) -> list[Any]:
    """Axes with something in them, in order."""
    return [axes for axes in figure.axes if axes.get_images()]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title().split("\n")[0] for axes in pictures(figure) if axes.get_title()]


# --- panels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "shown", "beside"), [(9, SHOWN, 2), (3, 3, 2), (1, 1, 1)])
def test_a_panel_for_the_image_its_targets_and_each_kind_of_states(batch: int, shown: int, beside: int) -> None:
    figure = painted(batch, 1, 1, (2, 3), ["blocks"], ["encoder", "teacher"])
    assert len(pictures(figure)) == 4 * shown
    assert titles(figure) == ["image", "masked", "encoder, PCA", "teacher, PCA"] * beside
    assert {axes.get_images()[0].get_array().shape for axes in pictures(figure)} == {(6, 9, 3)}


def test_a_panel_a_family_of_a_clip() -> None:
    figure = painted(2, 3, 4, (2, 2, 3), ["short", "long"], ["encoder"])
    assert titles(figure) == ["frame 3", "short", "long", "encoder, PCA"] * 2
    _, short, long, _ = (axes.get_images()[0].get_array() for axes in pictures(figure)[:4])
    assert (short != long).any()


def test_titles_lie_beside_one_another_in_the_picture() -> None:
    """Also in a narrow figure with a layout of its own, whose panels stay where they are put."""
    figure = painted(6, 1, 4, (2, 3, 3), ["short", "long"], ["encoder", "teacher"])
    figure.set_size_inches(12, 4.9)
    figure.suptitle("clip, on held-out samples", x=0.04, ha="left", fontsize=11)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in pictures(figure) if axes.get_title()]
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
    assert max(box.y1 for box in boxes) < figure._suptitle.get_window_extent().y0  # type: ignore[attr-defined]
    assert boxes[0].x0 > 0 and boxes[-1].x1 < figure.bbox.x1


def test_of_several_steps_the_middle_one_and_of_a_clip_the_middle_frame() -> None:
    """As the tokens that saw it."""
    grid, time = (2, 1, 1), torch.arange(3).expand(2, -1)
    maps, tokens = torch.zeros(2, 3, 4, 1, 1), torch.zeros(2, 3, 2, 1)
    maps[:, 1, 2] = 1
    tokens[0, 1, 1] = 1
    below, states = States(maps.new_zeros(2, 3, 0, 0), time, maps=(maps,)), States(tokens, time, grid)
    there = torch.zeros(2, 3, 2, dtype=torch.bool)
    there[:, 1, 1] = True
    hidden = packed(there.flatten(0, 1), grid)
    figure = Figure()
    picture.draw(figure, below, 4, {"one": [packed(~there.flatten(0, 1), grid), hidden]}, {"encoder": states})
    frame, masked, of = (axes.get_images()[0].get_array()[0, 0] for axes in pictures(figure)[:3])
    assert (frame == 1).all() and (masked < 1).any() and (of != 0.5).any()


# --- what is tinted ---------------------------------------------------------------------------------------------------


def test_context_is_as_it_was_targets_are_tinted_and_the_rest_is_pale() -> None:
    shown = drawn(1, 2, 8, 3).sigmoid()
    chosen = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]).bool().view(3, 1, 1, 4)
    found = overlay(shown, chosen, ["#FF0000", "#0000FF"])
    context, first, both, rest = found.split(2, dim=2)
    seen = shown.split(2, dim=2)
    assert torch.equal(context, seen[0])
    torch.testing.assert_close(first, (1 - TINT) * seen[1] + TINT * torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(both, (1 - TINT) * seen[2] + TINT * torch.tensor([0.5, 0, 0.5]))
    torch.testing.assert_close(rest, (1 - PALE) * seen[3] + PALE)


def test_every_family_has_colours_of_its_own() -> None:
    figure = painted(1, 1, 1, (4, 4), ["short", "long"], ["encoder"])
    image, *masked, _ = (torch.from_numpy(axes.get_images()[0].get_array().data) for axes in pictures(figure))
    for found, colour in zip(masked, COLOURS, strict=False):
        paint = torch.tensor([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        changed = (found != image).any(-1)
        torch.testing.assert_close(found[changed], torch.lerp(image, paint.expand_as(image), TINT)[changed])


def test_images_are_grey_or_in_colour_and_their_range_is_kept() -> None:
    x = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images(x), x.movedim(1, -1))
    assert torch.equal(images(x[:, :1]), x[:, 0, ..., None].expand(-1, -1, -1, 3))
    assert images(255 * x).max() <= 1 and images(255 * x).std() > 0.2
    assert images(4 * x - 2).min() >= 0 and images(4 * x - 2).std() > 0.2


# --- principal components ---------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_components_depend_neither_on_the_basis_nor_on_the_order_of_samples(seed: int, scale: float) -> None:
    """Nor on where the states lie, or how long they are: signs of directions are fixed."""
    x = drawn(8, 3, 4, 6, seed=seed).exp() * torch.tensor([9.0, 6, 4, 1, 1, 1])
    basis, _ = torch.linalg.qr(drawn(6, 6, seed=seed + 1).double())
    turned = (scale * (x.double() @ basis + drawn(3, 4, 6, seed=seed + 2))).flip(0)
    one, share = components(x)
    other, same = components(turned)
    torch.testing.assert_close(other.flip(0), one, atol=2e-3, rtol=0)
    assert same == pytest.approx(share, abs=1e-5)


def test_components_are_those_of_what_differs_between_samples() -> None:
    """In order, each at full scale; a place that is the same in all samples is grey, however far from the others it lies."""
    x = torch.zeros(100, 1, 2, 5)
    x[:, 0, 1] = 100
    x[:, 0, 0, 3], x[:, 0, 0, 1] = 3 * drawn(100).sigmoid() ** 4, drawn(100, seed=1).sigmoid() ** 4
    colours, share = components(x)
    assert share == pytest.approx(1, abs=1e-6)
    assert (colours[:, 0, 1] == 0.5).all() and (colours[..., 2] == 0.5).all()
    assert torch.corrcoef(torch.stack((colours[:, 0, 0, 0], x[:, 0, 0, 3])))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack((colours[:, 0, 0, 1], x[:, 0, 0, 1])))[0, 1] > 0.9
    full = (colours[:, 0, 0, :2] == 1).float().mean(dim=0)
    assert ((full > 0) & (full <= 2 * CLIPPED + 0.01)).all()


def test_the_share_is_that_of_three_directions() -> None:
    x = drawn(4000, 1, 1, 6) * torch.tensor([4.0, 3, 2, 1, 1, 1]).sqrt()
    assert components(x)[1] == pytest.approx(9 / 12, abs=0.03)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e4])
@pytest.mark.parametrize("shape", [(7, 2, 3, 5), (1, 2, 3, 5), (7, 1, 1, 1), (7, 2, 2, 2)])
def test_constant_states_are_grey(shape: tuple[int, ...], value: float) -> None:
    """Rounding is not blown up, and one sample has nothing to differ from."""
    tokens = value + drawn(*shape[1:])
    colours, share = components(tokens * (1 + 1e-7 * drawn(*shape, seed=1)))
    assert colours.shape == (*shape[:-1], 3)
    assert (colours - 0.5).abs().max() < 0.05 and share < 1e-3


def test_states_in_half_precision_of_fewer_than_three_directions() -> None:
    colours, share = components(drawn(9, 2, 2, 2).bfloat16())
    assert share == pytest.approx(1) and (colours[..., 2] == 0.5).all() and (colours[..., :2] != 0.5).any()
