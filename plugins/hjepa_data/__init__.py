"""Data sources: generated with known truth, or read from files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hjepa.hookspecs import hookimpl

if TYPE_CHECKING:
    from hjepa.registry import Components


@hookimpl
def register(components: Components) -> None:
    """The datasets of this family, and what changes their batches."""
    components.add("dataset", "moving_digits", "hjepa_data.moving_digits:MovingDigits")
    components.add("dataset", "digits", "hjepa_data.digits:Digits")
    components.add("dataset", "branches", "hjepa_data.branches:Branches")
    components.add("dataset", "arrays", "hjepa_data.arrays:Arrays")
    components.add("dataset", "images", "hjepa_data.images:Images")
    components.add("dataset", "videos", "hjepa_data.videos:Videos")
    components.add("dataset", "photos_in_motion", "hjepa_data.photos_in_motion:PhotosInMotion")
    components.add("dataset", "flow_files", "hjepa_data.flow_files:FlowFiles")
    components.add("transform", "random_resized_crop", "hjepa_data.random_resized_crop:RandomResizedCrop")
    components.add("transform", "flip", "hjepa_data.flip:Flip")
    components.add("dataset", "constant", "hjepa_data.constant:Constant")
    components.add("dataset", "out_of_order", "hjepa_data.out_of_order:OutOfOrder")
