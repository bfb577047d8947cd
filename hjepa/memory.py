"""Memory that was freed, and that the C library keeps all the same."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Freed pages go back to the system, where the C library has them lie until they are asked for (glibc; elsewhere nothing is done).

    Of steps that make and drop large tensors among small ones that stay, ever more such pages are left: a training that used
    3 GB had grown to 12 after a thousand steps.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no such thing as the program itself, on some systems
        return None
