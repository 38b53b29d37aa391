"""Picking: the series of voxels out of an image that is mapped volume by volume.

Covers: one pass over the volumes, from the first voxel asked for to the last. Does not cover: the
map (``mapped``), where the series go (``masking``), the pipeline of a pass (``loading``).

Single values picked at random would touch each page once per voxel; a pass touches it once.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask import loading
from sharedmask.kernels import Conversion

Array = NDArray[Any]
Voxels = NDArray[np.intp]


def pick(
    volumes: Array,
    voxels: Voxels,
    out: Array,
    conversion: Conversion | None,
    n_threads: int,
    on_volumes: Callable[[int], None] | None = None,
) -> bool:
    """Fill ``out`` with the series of ``voxels``; whether all of their values are finite.

    Parameters
    ----------
    volumes : ndarray, (n_timepoints, n_voxels)
        One volume after the other in memory.
    voxels : ndarray of int
        In any order, with repeats.
    out : ndarray, (n_picked, n_timepoints)
    conversion : Conversion or None
        None keeps the stored values.
    n_threads : int
        Threads that transpose.
    on_volumes : callable, optional
        Told how many volumes are done.

    Examples
    --------
    >>> volumes, out = np.arange(12).reshape(3, 4), np.empty((2, 3), int)
    >>> pick(volumes, np.array([3, 0]), out, None, 1)
    True
    >>> out
    array([[ 3,  7, 11],
           [ 0,  4,  8]])
    """
    first, last = (int(voxels.min()), int(voxels.max())) if len(voxels) else (0, 0)
    span = Span(volumes[:, first : last + 1])
    select = voxels - first
    return loading.load(
        span, out, select=select, conversion=conversion, n_threads=n_threads, on_volumes=on_volumes
    )


def buffer_bytes(volumes: Array, n_picked: int) -> int:
    """Memory that :func:`pick` takes besides ``out``."""
    return loading.buffer_bytes(Span(volumes), n_picked)


@dataclass(frozen=True)
class Span:
    """The same voxels of every volume, (n_timepoints, n_voxels), as ``loading`` reads an image."""

    values: Array
    compressed = False
    reading_bytes = 0

    @property
    def n_timepoints(self) -> int:
        return int(self.values.shape[0])

    @property
    def n_voxels(self) -> int:
        return int(self.values.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @contextlib.contextmanager
    def volumes(self) -> "Iterator[_Reader]":
        yield _Reader(iter(self.values))


class _Reader:
    def __init__(self, values: Iterator[Array]) -> None:
        self._values = values

    def readinto(self, out: Array) -> None:
        for row in out.reshape(-1, out.shape[-1]):
            row[...] = next(self._values)
