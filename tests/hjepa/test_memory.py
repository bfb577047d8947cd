"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from hjepa import memory

STATUS = Path("/proc/self/statm")
PAGES, SIZE = 800, 100_000


def held() -> int:
    """Bytes of memory that the process has, more or less."""
    return int(STATUS.read_text().split()[1]) * 4096


@pytest.mark.skipif(not (STATUS.exists() and hasattr(ctypes.CDLL(None), "malloc_trim")), reason="the C library is not glibc")
def test_what_lies_between_things_that_stay_is_given_back() -> None:
    blocks = [bytearray(b"1") * SIZE for _ in range(2 * PAGES)]
    stay = blocks[::2]
    del blocks
    before = held()
    memory.give_back()
    assert held() < before - PAGES * SIZE / 2
    assert len(stay) == PAGES


def test_where_there_is_no_such_function_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: object) -> object:
        raise TypeError(name)

    memory._trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", without)
    memory.give_back()
    assert memory._trim() is None
    memory._trim.cache_clear()
