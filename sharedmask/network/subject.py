"""The series of one subject in an HDF5 file, volume after volume.

Covers: finding the bytes of a subject, reading them forward through small buffers. Does not cover:
what else the file says (``connectome``), decompression (``codecs``), rows (``loader``).

A subject that is one deflated chunk, as Lacuna writes it, or lies uncompressed in one piece, is
read past HDF5, so that several are decompressed at once. Any other layout is read by h5py, all
subjects that share chunks together.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sharedmask.errors import ConnectomeError, DamagedImageError
from sharedmask.records import dataclass
from sharedmask.sources import hdf5
from sharedmask.sources.volumes import VolumesReader
from sharedmask.system.process import Lock
from sharedmask.typing import Array

_GROUP_BYTES = 64 * 2**20


class _Bytes(Protocol):
    def readinto(self, view: memoryview, /) -> int: ...
    def finish(self) -> None: ...


@dataclass(frozen=True)
class Subject:
    """One subject's volumes, as ``loader`` asks for them."""

    name: str
    n_timepoints: int
    n_voxels: int
    stored: np.dtype[Any]
    open_bytes: Callable[[], AbstractContextManager[_Bytes]]
    reads_ahead = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is read."""
        return np.dtype(np.float32)

    @property
    def reading_bytes(self) -> int:
        """What a reader holds: a volume as stored, and its offset in double precision."""
        return self.n_voxels * (self.stored.itemsize + 8)

    @contextlib.contextmanager
    def volumes(self) -> Iterator["_Reader"]:
        """The volumes, first to last."""
        with self.open_bytes() as stream:
            yield _Reader(self, stream)


class _Reader(VolumesReader):
    """Volumes in single precision, less the first one where that would cut off digits."""

    def __init__(self, subject: Subject, stream: _Bytes) -> None:
        self._subject = subject
        self._stream = stream
        self._left = subject.n_timepoints
        self._volume = np.empty(subject.n_voxels, subject.stored)
        self._offset: Array | None = None
        self._wide = subject.stored.itemsize > 4 or subject.stored.kind in "iu"

    def readinto(self, out: Array) -> None:
        """Fill the rows of ``out``, (k, n_voxels) or (n_voxels,) float32."""
        view = self._volume.view(np.uint8).data
        for row in out.reshape(-1, self._subject.n_voxels):
            if self._stream.readinto(view) < len(view):
                raise DamagedImageError(f"{self._subject.name} is truncated")
            if self._wide and self._offset is None:
                self._offset = self._volume.astype(np.float64)
            row[...] = self._volume if self._offset is None else self._volume - self._offset
            self._left -= 1
            if self._left == 0:
                self._stream.finish()


@contextlib.contextmanager
def subjects_in(path: Path, start: int, stop: int) -> Iterator[list[Subject]]:
    """Subjects ``start`` to ``stop`` of a file; each may be read once, by any thread."""
    with hdf5.open_file(path, str(path), ConnectomeError) as file:
        try:
            groups = _ChunkGroups(file["timeseries"], start, stop, str(path))
            subjects = [groups.subject(number) for number in range(start, stop)]
        except hdf5.DAMAGE as error:
            raise DamagedImageError(f"{path} is damaged: {error}") from error
        yield subjects


# --- by h5py -------------------------------------------------------------------------------------


class _ChunkGroups:
    """Subjects of one file; those that share chunks are read together, so that none is decompressed twice."""

    def __init__(self, series: Any, start: int, stop: int, name: str) -> None:
        self._series = series
        self._bounds = start, stop
        self._name = name
        self._lock = Lock()
        self._group = lru_cache(maxsize=1)(self._read)
        per_chunk = series.chunks[0] if series.chunks else 1
        fitting = _GROUP_BYTES // (int(np.prod(series.shape[1:])) * series.dtype.itemsize)
        self._step = per_chunk if per_chunk <= fitting else 1

    def subject(self, number: int) -> Subject:
        series, name = self._series, f"{self._name}, subject {number}"
        span = hdf5.Entries(series).span(number)
        open_bytes = partial(span.open, name) if span else partial(self.open_bytes, number)
        return Subject(name, series.shape[1], series.shape[2], series.dtype, open_bytes)

    @contextlib.contextmanager
    def open_bytes(self, number: int) -> Iterator["_ArrayBytes"]:
        first = number // self._step * self._step
        with self._lock:
            group = self._group(first)
        yield _ArrayBytes(group[number - max(first, self._bounds[0])])

    def _read(self, first: int) -> Array:
        start, stop = self._bounds
        try:
            found: Array = self._series[max(first, start) : min(first + self._step, stop)]
        except hdf5.DAMAGE as error:
            raise DamagedImageError(f"{self._name} is damaged: {error}") from error
        return found


class _ArrayBytes:
    """The bytes of an array, read forward."""

    def __init__(self, array: Array) -> None:
        self._bytes = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

    def readinto(self, view: memoryview) -> int:
        got = min(len(view), len(self._bytes))
        view[:got] = self._bytes[:got]
        self._bytes = self._bytes[got:]
        return got

    def finish(self) -> None:
        """There is nothing to verify."""
