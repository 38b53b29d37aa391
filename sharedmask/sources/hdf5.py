"""HDF5 files: opening one, reading and writing the entries of a data set one at a time, a new file.

Covers: where in its file an entry lies, reading it past HDF5 (several at once, in little memory),
deflating it, a new file that is complete or an error. Does not cover: what files hold (``nfdh5``,
``connectome``, ``tables``), the names of files that are not complete (``files``).

An entry is ``dataset[number]``, or ``dataset[..., number]``: a frame, a subject.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import re
import signal
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BufferedRandom, FileIO
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip_lib, isal_zlib

from sharedmask.decoding.codecs import Codec, MemberStream, Stream
from sharedmask.errors import DamagedImageError, MissingFileError, ParameterError, SharedMaskError
from sharedmask.records import dataclass
from sharedmask.system import inputs, platform
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.process import at_fork
from sharedmask.typing import Array

_DEFLATE = 1  # HDF5's number of that filter
_ZLIB = Codec("deflate", b"\x78", partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_ZLIB))
_ISAL_LEVEL = 3  # the highest of ISA-L's, which are faster than zlib's of the same number
DAMAGE = (OSError, ValueError, RuntimeError, KeyError, TypeError)
"""What HDF5 raises when it reads a damaged entry."""
_SMALL_BYTES = 16 * 2**20  # read without asking whether there is room
_HEAP = re.compile(rb"GCOL\x01\0\0\0")
_HEAP_OBJECT = struct.Struct("<H6xQ")
_ENDS_BYTES = 2**20  # at either end of a file, where what is no entry lies
_SLAB_BYTES = 2 * 2**20  # read or written at once


@functools.cache
def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ParameterError("HDF5 files need h5py: pip install 'sharedmask[hdf5]'") from error
    if h5py.version.version_tuple[:2] < (3, 14):  # later ones do it themselves
        from h5py._objects import phil

        # A child forked while another thread reads would wait for that thread, which it does not have.
        at_fork(before=phil.acquire, after_in_parent=phil.release, after_in_child=phil.release)
    return h5py


@contextlib.contextmanager
def open_file(path: Path, name: str, wrong: Callable[[str], Exception] = DamagedImageError) -> Iterator[Any]:
    """The file, as h5py's, read-only; ``name`` is the file's in messages.

    Raises MissingFileError.
    Raises DamagedImageError, or what ``wrong`` makes: it is no HDF5 file, or not a complete one.
    Raises ParameterError: h5py is not installed.
    """
    h5py = _h5py()
    if not path.exists():
        raise MissingFileError(f"{name} does not exist")
    if not path.is_file():
        raise wrong(f"{name} is no file")
    if (place := _endless_heap(path)) is not None:
        raise wrong(f"{name} is damaged: its texts at byte {place} are longer than the file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if "unable to lock file" in str(error):
            hint = "with HDF5_USE_FILE_LOCKING=FALSE in the environment it is read without a lock"
            raise wrong(f"{name} cannot be locked ({error}): {hint}") from error
        if error.errno:
            raise
        raise wrong(f"{name} cannot be read as HDF5: {error}") from error
    with file:
        yield file


def _endless_heap(path: Path) -> int | None:
    """Where a global heap is that HDF5 would never come back from, in C, when it reads a text of the file.

    Its objects follow one another: one whose size is near 2**64 leads back to itself. Heaps lie with what
    else is no entry, near the beginning of a file, or its end.
    """
    with inputs.opened_regular(path) as file:
        nbytes = os.fstat(file.fileno()).st_size
        for first in sorted({0, max(nbytes - _ENDS_BYTES, 0)}):
            data = platform.pread(file.fileno(), _ENDS_BYTES, first)
            for found in re.finditer(_HEAP, data):
                if not _ends(data, found.start()):
                    return first + found.start()
    return None


def _ends(data: bytes, heap: int) -> bool:
    """Whether the objects of a heap, as far as they are here, end in it."""
    place = heap + _HEAP_OBJECT.size
    end = heap + int.from_bytes(data[heap + 8 : place], "little")
    while place + _HEAP_OBJECT.size <= min(end, len(data)):
        index, size = _HEAP_OBJECT.unpack_from(data, place)
        step = _HEAP_OBJECT.size - (-size // 8 * 8) if index else size  # index 0: what is free, all of it
        if not _HEAP_OBJECT.size <= step <= end - place:
            return False
        place += step
    return True


@contextlib.contextmanager
def open_facts(path: Path, name: str, wrong: Callable[[str], Exception] = DamagedImageError) -> Iterator[Any]:
    """`open_file`, for what a file says of its entries: whatever goes wrong with that is the file's fault.

    Raises MemoryLimitError: what it says takes more memory than may be used; see `read_small`.
    """
    try:
        with open_file(path, name, wrong) as file:
            yield file
    except Exception as error:  # HDF5 tells of damage by many, RuntimeError and KeyError among them
        if isinstance(error, SharedMaskError | MemoryError) or getattr(error, "errno", None):
            raise
        raise wrong(f"{name} cannot be read: {str(error) or type(error).__name__}") from error


def read_small(datasets: Mapping[str, Any]) -> dict[str, Array]:
    """All values of data sets that tell of the entries; a few bytes of HDF5 can promise any number."""
    taken = {key: math.prod(dataset.shape) * dataset.dtype.itemsize for key, dataset in datasets.items()}
    if sum(taken.values()) > _SMALL_BYTES:
        largest = max(taken, key=lambda key: taken[key])
        where = f"reading {largest} of {datasets[largest].file.filename}"
        MemoryBudget.here().require(where, 4 * sum(taken.values()))
    return {key: np.asarray(dataset[()]) for key, dataset in datasets.items()}


# --- entries -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Bytes of a file that are one entry, as it is in memory or deflated."""

    path: str
    offset: int
    nbytes: int
    deflated: bool

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Stream]:
        """The entry's values, read forward; ``name`` is the entry's in messages."""
        with _SpanFile(self) as file:
            yield MemberStream(file, _ZLIB, name) if self.deflated else Stream(file)


class _SpanFile(FileIO):
    """Some bytes of a file, as if they were all."""

    def __init__(self, span: Span) -> None:
        super().__init__(span.path, "rb")
        self.seek(span.offset)
        self._left = span.nbytes

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        data = super().read(wanted) or b""
        self._left -= len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        got = super().readinto(memoryview(buffer)[: self._left]) or 0
        self._left -= got
        return got


@dataclass(frozen=True)
class Entries:
    """The entries of a data set, along its first or its last axis."""

    dataset: Any
    last: bool = False

    def __len__(self) -> int:
        n: int = self.dataset.shape[-1 if self.last else 0]
        return n

    @property
    def are_chunks(self) -> bool:
        """Whether each is one of HDF5's chunks."""
        shape = self.dataset.shape
        return bool(self.dataset.chunks == ((*shape[:-1], 1) if self.last else (1, *shape[1:])))

    @property
    def filters(self) -> list[int]:
        """What HDF5 applies to what it stores, by its numbers."""
        applied = self.dataset.id.get_create_plist()
        return [applied.get_filter(i)[0] for i in range(applied.get_nfilters())]

    @property
    def _is_native(self) -> bool:
        """Whether values are stored as NumPy has them: HDF5 tells the nearest type of any other."""
        known = _h5py().h5t.py_create(self.dataset.dtype, logical=True)
        return bool(self.dataset.id.get_type().equal(known))

    def span(self, number: int) -> Span | None:
        """Where the entry is in the file; None if it is not there, or only HDF5 can read it."""
        if not self._is_native:
            return None
        path = self.dataset.file.filename
        if self.dataset.chunks is None:
            start = self._begin
            nbytes = math.prod(self.dataset.shape[1:]) * self.dataset.dtype.itemsize
            return None if start is None else Span(path, start + number * nbytes, nbytes, False)
        filters = self.filters
        # Some versions of HDF5 count the bytes of a chunk from the end of the user block.
        if not self.are_chunks or filters not in ([], [_DEFLATE]) or self.dataset.file.userblock_size:
            return None
        chunk = self.dataset.id.get_chunk_info_by_coord(self._place(number))
        deflated = bool(filters) and not chunk.filter_mask
        return None if chunk.byte_offset is None else Span(path, chunk.byte_offset, chunk.size, deflated)

    @property
    def offset(self) -> int | None:
        """Where the first begins in the file, if all lie there one after the other, as they are in memory."""
        if not self.are_chunks:
            return self._begin
        if self.filters:
            return None
        spans = [self.span(number) for number in range(len(self))]
        starts = [span.offset for span in spans if span]
        nbytes = self.dataset.nbytes // len(self)
        follow = starts == [starts[0] + number * nbytes for number in range(len(self))] if starts else False
        return starts[0] if follow else None

    @property
    def _begin(self) -> int | None:
        whole = (
            self.dataset.chunks is None and not self.dataset.external and not self.last and self._is_native
        )
        offset: int | None = self.dataset.id.get_offset() if whole else None
        return offset

    def read(self, number: int, out: Array, name: str) -> None:
        """Fill ``out``, of the entry's shape and of any layout; HDF5 itself may take several of memory.

        Raises OSError: the entry is damaged.
        """
        span = self.span(number) if self.dataset.dtype == out.dtype else None
        if span is None:
            self._read_by_hdf5(number, out)
            return
        with span.open(name) as stream:
            for _, part in _slabs(out):
                values = np.empty(part.shape, out.dtype)
                if stream.readinto(values.reshape(-1).view(np.uint8).data) < values.nbytes:
                    raise DamagedImageError(f"{name} is truncated")
                part[...] = values
            stream.finish()

    def _read_by_hdf5(self, number: int, out: Array) -> None:
        for rows, part in _slabs(out):
            values = np.empty(part.shape, out.dtype)
            self.dataset.read_direct(values, self._selection(number, rows))
            part[...] = values

    def write(self, number: int, values: Array) -> None:
        """Past HDF5's copies where the entry is a chunk that is plain or deflated."""
        filters = self.filters
        if not self.are_chunks or filters not in ([], [_DEFLATE]):
            self._write_by_hdf5(number, values)
            return
        content = self._deflated(values) if filters else np.ascontiguousarray(values).data
        self.dataset.id.write_direct_chunk(self._place(number), content)

    def _deflated(self, values: Array) -> bytes:
        """HDF5 itself takes several entries of memory for this, and more time at low levels."""
        level = self.dataset.compression_opts
        encoder = isal_zlib.compressobj(level) if level <= _ISAL_LEVEL else zlib.compressobj(level)
        parts = [encoder.compress(np.ascontiguousarray(part).data) for _, part in _slabs(values)]
        return b"".join([*parts, encoder.flush()])

    def _write_by_hdf5(self, number: int, values: Array) -> None:
        whole = [(slice(len(values)), values)]  # as a chunk is compressed
        for rows, part in whole if self.dataset.chunks else _slabs(values):
            dest = self._selection(number, rows)
            self.dataset.write_direct(np.ascontiguousarray(part), dest_sel=dest)

    def _place(self, number: int) -> tuple[int, ...]:
        zeros = (0,) * (self.dataset.ndim - 1)
        return (*zeros, number) if self.last else (number, *zeros)

    def _selection(self, number: int, rows: slice) -> Any:
        return np.s_[rows, ..., number] if self.last else np.s_[number, rows]


def _slabs(entry: Array) -> Iterator[tuple[slice, Array]]:
    """The entry in parts along its first axis, which is the slowest in the file; small beside it."""
    step = max(1, _SLAB_BYTES * len(entry) // max(entry.nbytes, 1))
    for start in range(0, len(entry), step):
        rows = slice(start, min(start + step, len(entry)))
        yield rows, entry[rows]


# --- writing -------------------------------------------------------------------------------------


class _Output(BufferedRandom):
    """What HDF5 writes to. It is never told of an error, since it crashes later if it is; ``error`` is ours.

    h5py ignores how much was written, so the file is a buffered one, which writes all of it.
    """

    error: BaseException | None = None

    def _tried(self, do: Callable[..., Any], *args: Any, instead: Any) -> Any:
        if self.error is None:
            try:
                return do(*args)
            except BaseException as error:
                self.error = error
        return instead

    def write(self, data: Any, /) -> int:
        written: int = self._tried(super().write, data, instead=len(data))
        return written

    def readinto(self, buffer: Any, /) -> int:
        got: int = self._tried(super().readinto, buffer, instead=0)
        return got

    def seek(self, place: int, whence: int = 0, /) -> int:
        found: int = self._tried(super().seek, place, whence, instead=place)
        return found

    def truncate(self, size: int | None = None, /) -> int:
        left: int = self._tried(super().truncate, size, instead=size)
        return left

    def flush(self) -> None:
        self._tried(super().flush, instead=None)


@dataclass(frozen=True)
class NewFile:
    """An HDF5 file that is being written."""

    file: Any
    _path: Path
    _output: _Output

    def add(self, where: str, values: Any, **storage: Any) -> Any:
        """A new data set with these values."""
        with _signals_deferred():
            made = self.file.create_dataset(where, data=values, **storage)
        self.check()
        return made

    def write_entry(self, entries: Entries, number: int, values: Array) -> None:
        """Write one of a data set's entries."""
        with _signals_deferred():
            entries.write(number, values)
        self.check()

    def check(self) -> None:
        """Raise what went wrong when bytes were written."""
        error = self._output.error
        if isinstance(error, OSError) and error.errno:
            raise type(error)(error.errno, error.strerror, os.fspath(self._path)) from error
        if error is not None:
            raise error


@contextlib.contextmanager
def create_file(path: Path, **options: Any) -> Iterator[NewFile]:
    """A new file, which was opened again, and is complete, when the context ends without an error.

    ``path`` may be a name in /proc/self/fd; ``options`` are those of :class:`h5py.File`. An OSError, as of
    a full disk, names the file.
    """
    h5py = _h5py()
    # Through a file object: HDF5 itself looks for the name of the file, and it may have none yet.
    with _Output(FileIO(path, "w+")) as output:
        file = h5py.File(output, "w", **options)
        new = NewFile(file, path, output)
        try:
            yield new
        finally:
            with _signals_deferred():
                file.close()
    new.check()
    _verify(path)


def _verify(path: Path) -> None:
    try:
        with open(path, "rb") as raw, _h5py().File(raw, "r") as file:
            file.visititems(lambda _, found: None)
    except (OSError, RuntimeError, KeyError) as error:
        raise OSError(errno.EIO, f"HDF5 cannot read what it wrote: {error}", os.fspath(path)) from error


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Handlers of Python's run at the end: an exception of theirs must not pass through HDF5."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    found = {number: signal.getsignal(number) for number in signal.valid_signals()}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda one, _: caught.append(one))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for one in caught:
            signal.raise_signal(one)


def side_by_side(chunk: tuple[int, ...]) -> dict[str, Any]:
    """How a data set is made whose plain chunks lie one after the other, with ``libver="v110"`` or later."""
    h5py = _h5py()
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return {"chunks": chunk, "dcpl": made}
