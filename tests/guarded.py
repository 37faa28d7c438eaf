"""Memory that shows what was touched outside an array: pages without access at its ends, and canaries around it.

A read or write on a page without access kills the process; canaries tell of writes only, but of every single byte.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

CANARY = 0xA5
FENCE = 256  # bytes of canaries at each end


def guarded(count: int, dtype: Any = np.float32, end: bool = True) -> NDArray[Any]:
    """(count,) zeros that end where a page without access begins, or begin where one ends. The memory is freed with the array.

    Aligned to no more than a number at its end. Skips the test on Windows.
    """
    if os.name == "nt":
        pytest.skip("pages without access are made by mprotect")
    size, page = count * np.dtype(dtype).itemsize, mmap.PAGESIZE
    pages = max(1, -(-size // page)) + 2
    raw = np.frombuffer(mmap.mmap(-1, pages * page), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for first in (0, pages - 1):
        if protect(raw.ctypes.data + first * page, page, 0):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    start = (pages - 1) * page - size if end else page
    return raw[start : start + size].view(dtype)


def canaries(count: int, dtype: Any = np.float32) -> tuple[NDArray[Any], Callable[[], bool]]:
    """(count,) zeros at a cache line, and a function that tells whether the bytes before and after them are as they were."""
    size = count * np.dtype(dtype).itemsize
    raw = np.full(size + 2 * FENCE + 64, CANARY, np.uint8)
    start = FENCE + -(raw.ctypes.data + FENCE) % 64
    inner = raw[start : start + size]
    inner[:] = 0

    def intact() -> bool:
        return bool((raw[:start] == CANARY).all() and (raw[start + size :] == CANARY).all())

    return inner.view(dtype), intact
