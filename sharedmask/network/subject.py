"""The series of one subject in an HDF5 file, volume after volume.

Covers: finding the bytes of a subject, reading them forward through small buffers. Does not cover:
what else the file says (``connectome``), decompression (``codecs``), rows (``loader``).

A subject that is one deflated chunk, as Lacuna writes it, or lies uncompressed in one piece, is
read past HDF5, so that several are decompressed at once. Any other layout is read by h5py, all
subjects that share chunks together.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from isal import igzip_lib

from sharedmask.errors import ConnectomeError, DamagedImageError, ParameterError
from sharedmask.sources.codecs import Codec, MemberStream, Stream
from sharedmask.typing import Array

_ZLIB = Codec("deflate", b"\x78", partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_ZLIB))
_DEFLATE = 1  # HDF5's number of that filter
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
    compressed: bool = True

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


class _Reader:
    """Volumes in single precision, less the first one where that would cut off digits."""

    def __init__(self, subject: Subject, stream: _Bytes) -> None:
        self._subject = subject
        self._stream = stream
        self._left = subject.n_timepoints
        self._volume = np.empty(subject.n_voxels, subject.stored)
        self._offset: Array | None = None
        self._wide = subject.stored.itemsize > 4 or subject.stored.kind in "iu"

    def readinto(self, out: Array) -> None:
        """Fill the rows of ``out``, (k, n_voxels) float32."""
        for row in out:
            self._next()
            row[...] = self._volume if self._offset is None else self._volume - self._offset

    def _next(self) -> None:
        view = self._volume.view(np.uint8).data
        if self._stream.readinto(view) < len(view):
            raise DamagedImageError(f"{self._subject.name} is truncated")
        if self._wide and self._offset is None:
            self._offset = self._volume.astype(np.float64)
        self._left -= 1
        if self._left == 0:
            self._stream.finish()


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """The file, by h5py.

    Raises
    ------
    ConnectomeError
        It is no HDF5 file.
    ParameterError
        h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ParameterError("reading a connectome needs h5py: pip install 'sharedmask[network]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ConnectomeError(f"{path} cannot be read as HDF5: {error}") from error
    with file:
        yield file


@contextlib.contextmanager
def subjects_in(path: Path, start: int, stop: int) -> Iterator[list[Subject]]:
    """Subjects ``start`` to ``stop`` of a file; each may be read once, by any thread."""
    with open_file(path) as file:
        series = file["timeseries"]
        direct = _is_direct(file, series)
        groups = _ChunkGroups(series, start, stop, str(path))
        finders = [_place(path, series, number) if direct else None for number in range(start, stop)]
        yield [
            Subject(
                f"{path}, subject {number}",
                series.shape[1],
                series.shape[2],
                series.dtype,
                finder or partial(groups.open_bytes, number),
            )
            for number, finder in enumerate(finders, start)
        ]


# --- past HDF5 -----------------------------------------------------------------------------------


def _is_direct(file: Any, series: Any) -> bool:
    """Whether each subject lies in one piece, as it is or deflated."""
    filters = series.id.get_create_plist()
    numbers = [filters.get_filter(i)[0] for i in range(filters.get_nfilters())]
    whole = series.chunks is None or series.chunks == (1, *series.shape[1:])
    return whole and numbers in ([], [_DEFLATE]) and file.userblock_size == 0 and not series.external


def _place(path: Path, series: Any, number: int) -> Callable[[], Any] | None:
    """How to open the bytes of one subject; None if they were never written."""
    nbytes = int(np.prod(series.shape[1:])) * series.dtype.itemsize
    name = f"{path}, subject {number}"
    if series.chunks is None:
        offset = series.id.get_offset()
        return None if offset is None else partial(_span, path, name, offset + number * nbytes, nbytes, False)
    chunk = series.id.get_chunk_info_by_coord((number, 0, 0))
    if chunk.byte_offset is None:
        return None
    deflated = series.compression is not None and not chunk.filter_mask
    return partial(_span, path, name, chunk.byte_offset, chunk.size, deflated)


@contextlib.contextmanager
def _span(path: Path, name: str, offset: int, size: int, deflated: bool) -> Iterator[Stream]:
    with _FileSpan(path, offset, size) as span:
        yield MemberStream(span, _ZLIB, name) if deflated else Stream(span)


class _FileSpan(FileIO):
    """Some bytes of a file, as if they were all."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        super().__init__(path, "rb")
        self.seek(offset)
        self._left = size

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        data = super().read(wanted) or b""
        self._left -= len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        got = super().readinto(memoryview(buffer)[: self._left]) or 0
        self._left -= got
        return got


# --- by h5py -------------------------------------------------------------------------------------


class _ChunkGroups:
    """Subjects that share chunks, read together, so that no chunk is decompressed twice."""

    def __init__(self, series: Any, start: int, stop: int, name: str) -> None:
        self._series = series
        self._bounds = start, stop
        self._name = name
        self._lock = threading.Lock()
        self._group = lru_cache(maxsize=1)(self._read)
        per_chunk = series.chunks[0] if series.chunks else 1
        fitting = _GROUP_BYTES // (int(np.prod(series.shape[1:])) * series.dtype.itemsize)
        self._step = per_chunk if per_chunk <= fitting else 1

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
        except OSError as error:
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
