"""Frames of a video file, by PyAV: counted by reading its packets, found by their times, decoded from the key frame before them.

S side    T frames of a clip    C channels
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hjepa.errors import Mistake
from hjepa_data.manifest import Unreadable, reading
from hjepa_data.pictures import fits, square

ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""Those that are tried, whatever a name says: none that follows what is written in a file to other files or addresses."""


def installed() -> None:
    """Mistake where PyAV is not."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise Mistake("videos are decoded by PyAV, which is not installed: pip install 'hjepa[video]'") from None


def look(path: Path) -> int:
    """How many frames a video has; `Unreadable` where its packets cannot all be read, or its first frame not be decoded."""
    with _opened(path) as (container, stream):
        times = _times(container, stream)
        container.seek(times[0], stream=stream)
        if next(container.decode(stream), None) is None:
            raise Unreadable("its first frame cannot be decoded")
    return len(times)


def read(path: Path, wanted: Sequence[int], size: int, channels: int) -> Tensor:
    """(T, C, S, S) uint8: the frames with these numbers, in rising order, the middle of each. `Unreadable` where that fails."""
    with _opened(path) as (container, stream):
        times = _times(container, stream)
        if wanted[-1] >= len(times):
            raise Unreadable(f"has {len(times)} frames now, and the one after {wanted[-1]} others is needed")
        container.seek(times[wanted[0]], stream=stream)
        found = _at(container.decode(stream), [times[number] for number in wanted])
        if len(found) < len(wanted):  # some files say other times when they are entered in the middle
            container.seek(0)
            found = _counted(container.decode(stream), wanted)
        if len(found) < len(wanted):
            raise Unreadable(f"only {len(found)} of the {len(wanted)} frames of a clip can be decoded")
        mode = "RGB" if channels == 3 else "L"
        return torch.stack([square(frame.to_image().convert(mode), size) for frame in found])


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    import av

    with reading(path), av.open(str(path), container_options={"format_whitelist": DEMUXERS}) as container:
        if not container.streams.video:
            raise Unreadable("has no video stream")
        stream = container.streams.video[0]
        fits(stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.options = {"err_detect": "explode"}  # rather than a guess at what is broken
        yield container, stream


def _times(container: Any, stream: Any) -> list[int]:
    """When each frame is shown, in order; read from the packets alone."""
    times = sorted({packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None})
    if not times:
        raise Unreadable("has no frames")
    return times


def _at(frames: Iterable[Any], times: Sequence[int]) -> list[Any]:
    """The frames that are shown at these times."""
    found, needed = [], set(times)
    for frame in frames:
        if frame.pts in needed:
            found.append(frame)
        if frame.pts is not None and frame.pts >= times[-1]:
            break
    return found


def _counted(frames: Iterable[Any], wanted: Sequence[int]) -> list[Any]:
    """The frames with these numbers, counted from the first."""
    needed = set(wanted)
    return [frame for number, frame in enumerate(islice(frames, wanted[-1] + 1)) if number in needed]
