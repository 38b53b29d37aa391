"""Pages of a map: telling the kernel which of them are needed next, and which no more.

Covers: the advice. Does not cover: what is mapped (``mapped``, ``segments``).

A page of a file is read when it is first looked at, and the kernel may drop it again.
"""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_PAGE = mmap.PAGESIZE


def ahead(array: Array) -> None:
    """Have the pages of ``array``, a contiguous view of a map, read in the background."""
    _advise(array, "MADV_WILLNEED")


def behind(array: Array) -> None:
    """Let go of the pages of ``array``: they do not count as this process's until looked at again.

    Nothing is lost: a shared map has its values in the file, or in the shared memory, not here.
    """
    _advise(array, "MADV_DONTNEED")


def _advise(array: Array, advice: str) -> None:
    buffer: Any = array
    while isinstance(buffer, np.ndarray):
        buffer = buffer.base
    mapped = buffer.obj if isinstance(buffer, memoryview) else None
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, advice):
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    first = np.frombuffer(buffer, np.uint8).ctypes.data
    start = (low - first) // _PAGE * _PAGE
    mapped.madvise(getattr(mmap, advice), start, high - first - start)
