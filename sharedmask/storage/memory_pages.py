"""The pages of shared memory: large ones where the kernel has them, at hand before anybody writes to them.

Covers: taking them, mapping them for writing, having them at hand. Does not cover: where segments live and
what to say where memory is short (``memory``), what is in them (``segment``).

Large pages are given, cleared, read and given back several times as fast as the small ones in their place.
Nobody has to set them up: they are asked for by ``MADV_COLLAPSE``, which makes one of what lies in its place.
"""

import contextlib
import mmap
import os
import time

import numpy as np

from sharedmask.system import platform, process
from sharedmask.system.threads import Threads
from sharedmask.typing import Array

_LARGE_FROM = 16 * 2**20  # bytes of a segment
_AT_ONCE = 16 * 2**20  # 4 ms: many kernels begin anew where a signal comes, as every 10 ms of a profiler
_QUICK = 0.25e-3  # seconds that large pages take, each, on average; the small ones in its place take 1e-3
_TRIED = 4e-3  # seconds more, after which it is clear that they take longer
_POPULATED = 16 * 2**20  # bytes at a time
_POPULATING = 4  # threads, at most: more wait for each other


def reserve(fd: int, nbytes: int) -> None:
    """Take the pages of a segment, all of them now.

    Raises OSError: there are too few.
    """
    os.ftruncate(fd, nbytes)
    if size := _large(nbytes):
        with contextlib.suppress(OSError):  # no room for their map; all memory is locked (mlockall)
            _reserve_large(fd, nbytes, size)
    for start in range(0, nbytes, _AT_ONCE):
        platform.reserve(fd, start, min(_AT_ONCE, nbytes - start))


def mapped(fd: int, nbytes: int, access: int = mmap.ACCESS_WRITE) -> mmap.mmap:
    """A segment, to write to or not; a large page is met as one, and not as the small ones in it."""
    if not (size := _large(nbytes)):
        return mmap.mmap(fd, nbytes, access=access)
    with platform.gap(nbytes, size):
        buffer = mmap.mmap(fd, nbytes, access=access)
        if address_of(buffer) % size:  # it fills another gap, of about its size
            with contextlib.suppress(OSError):
                buffer = mmap.mmap(fd, nbytes, access=access)
        return buffer


def address_of(buffer: mmap.mmap) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def populate(array: Array) -> None:
    """The first values that are written touch each page of memory: all at once it takes half as long."""
    starts, address = range(0, array.nbytes, _POPULATED), array.ctypes.data
    if len(starts) < 2:  # a thread would take longer
        return
    with Threads(min(process.n_cpus(), _POPULATING), "sharedmask-populate") as threads:
        for start in starts:
            threads.submit(platform.populate, address + start, min(_POPULATED, array.nbytes - start))


def _large(nbytes: int) -> int:
    """Bytes of a large page, if they are worth the while for so many."""
    size = platform.large_page()
    return size if 0 < size <= _LARGE_FROM <= nbytes else 0


def _reserve_large(fd: int, nbytes: int, size: int) -> None:
    """As far as they are to be had quickly.

    They are not where free memory is in pieces, which the kernel moves about to make room, nor in a virtual
    machine whose host has taken back what was free.
    """
    spent = -_TRIED
    with contextlib.closing(mapped(fd, nbytes)) as buffer:
        address = address_of(buffer)
        for place in range(0, nbytes - size + 1, size):
            began = time.thread_time()
            platform.reserve(fd, place, 1)  # of nothing no page is made
            made = platform.make_large(address + place, size)
            platform.advise(buffer, "MADV_DONTNEED", place, size)  # taken, but not this process's own yet
            spent += time.thread_time() - began - _QUICK
            if not made or spent > 0:
                return
