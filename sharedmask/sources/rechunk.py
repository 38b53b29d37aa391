"""Bands of rows: an image of any size turned from volumes into rows in bounded memory.

Covers: cutting rows into bands, reading one band of every volume, the temporary copy of what
cannot be read that way. Does not cover: the transposition of one band (``loader``), where rows
go (``disk``).

::

    plain file of volumes ──────────────┐  a band of voxels of each volume     rows of the band
                                        ├────────────────────────────────> transposed ──> written
    anything else ──> nameless copy ────┘                                   while the next is read

All writing is sequential. A plain file is read once; of anything else the voxels asked for are
written once more. If all rows fit in memory there is one band, and no copy. Rows of a file pass as they are.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.errors import DamagedImageError, SegmentError
from sharedmask.records import dataclass
from sharedmask.sources import loader
from sharedmask.sources.by_row import RowSource
from sharedmask.sources.layout import FileLayout
from sharedmask.sources.source import Source
from sharedmask.sources.values import all_finite
from sharedmask.sources.volumes import Span
from sharedmask.system import files, process
from sharedmask.system.threads import Threads
from sharedmask.system.units import format_bytes
from sharedmask.typing import Array, NDArray

Voxels = NDArray[np.intp]
Write = Callable[[int, Array], None]
"""Takes the number of the first row, and rows."""

# One band is read while another is written. Measured: beyond 256 MiB bands are not faster.
_N_BANDS = 2
_BAND_BYTES = 256 * 2**20
_LEAST_ROWS = 1024
_COPIED_BYTES = 2 * 2**20


@dataclass(frozen=True)
class Bands:
    """How the rows of an image are cut."""

    n_rows: int
    rows: int
    """Of one band, the last of which may be shorter."""
    nbytes: int
    """What this takes in memory."""

    def __iter__(self) -> Iterator[slice]:
        starts = range(0, self.n_rows, self.rows)
        return (slice(start, min(start + self.rows, self.n_rows)) for start in starts)

    @property
    def is_one(self) -> bool:
        return self.rows >= self.n_rows


def cut(source: Source, n_rows: int, memory: int) -> Bands:
    """Bands of at most ``memory`` bytes in all; of few rows where even that is too much."""
    if isinstance(source, RowSource):
        return Bands(n_rows, n_rows, source.reading_bytes)
    bands = _bands(source, n_rows, n_rows)
    while bands.rows > _LEAST_ROWS and bands.nbytes > min(memory, _N_BANDS * _BAND_BYTES):
        bands = _bands(source, n_rows, max(bands.rows * 7 // 8, _LEAST_ROWS))
    return bands


def _bands(source: Source, n_rows: int, rows: int) -> Bands:
    copies = 1 if rows >= n_rows else _N_BANDS
    row_bytes = source.n_timepoints * source.dtype.itemsize
    n_threads = source.n_writers if copies == 1 else process.n_cpus()
    band = copies * rows * row_bytes + loader.buffer_bytes(source, rows, n_threads)
    copied = 0 if copies == 1 or _plain(source) else _copying_bytes(source, n_rows)
    return Bands(n_rows, rows, max(band, copied))


def _copying_volumes(source: Source, n_rows: int) -> int:
    """Volumes that are written to the temporary copy at once."""
    return max(1, _COPIED_BYTES // (n_rows * source.dtype.itemsize))


def _copying_bytes(source: Source, n_rows: int) -> int:
    two_blocks = 2 * _copying_volumes(source, n_rows) * n_rows
    return (two_blocks + source.n_voxels) * source.dtype.itemsize


def _plain(source: Source) -> FileLayout | None:
    """Where the values lie in a file as they are in memory, x fastest."""
    layout = source.layout
    return layout if isinstance(layout, FileLayout) and layout.order == "F" else None


def copied_bytes(source: Source, bands: Bands) -> int:
    """What the temporary copy takes on disk."""
    plain = bands.is_one or _plain(source)
    return 0 if plain else bands.n_rows * source.n_timepoints * source.dtype.itemsize


def transpose(source: Source, voxels: Voxels | None, bands: Bands, write: Write, folder: Path) -> bool:
    """Give the rows of ``voxels``, sorted numbers (None: all), to ``write``; whether all values are finite.

    Rows go from the first to the last, (n, n_timepoints) at a time, in a thread. A temporary copy may be in
    ``folder``, without a name.
    """
    if isinstance(source, RowSource):
        return _as_they_are(source, np.arange(source.n_voxels) if voxels is None else voxels, write)
    n_threads = source.n_writers if bands.is_one else process.n_cpus()
    if bands.is_one:
        rows = np.empty((bands.n_rows, source.n_timepoints), source.dtype)
        finite = loader.load(source, rows, select=voxels, n_threads=n_threads)
        write(0, rows)
        return finite
    with _volumes_in_a_file(source, voxels, folder) as file, Threads(1, "sharedmask-write") as thread:
        buffers = [np.empty((bands.rows, source.n_timepoints), source.dtype) for _ in range(_N_BANDS)]
        finite, written = True, list[Future[None]]()
        for number, band in enumerate(bands):
            rows = buffers[number % _N_BANDS][: band.stop - band.start]
            part, select = file.part(band)
            finite = loader.load(part, rows, select=select, n_threads=n_threads) and finite
            if written:
                written.pop().result()
            written.append(thread.submit(write, band.start, rows))
        written.pop().result()
    return finite


def _as_they_are(source: RowSource, voxels: Voxels, write: Write) -> bool:
    finite = True
    for start, rows in source.blocks(voxels):
        finite = finite and (rows.dtype.kind != "f" or all_finite(rows))
        write(start, rows)
    return finite


# --- volumes in a file ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Volumes:
    """Volumes one after the other in an open file, values as they are in memory."""

    name: str
    fd: int
    offset: int
    n_voxels: int
    n_timepoints: int
    dtype: np.dtype[Any]
    voxels: Voxels | None
    """Which of them are the rows; None for all."""

    def part(self, rows: slice) -> tuple[Span, Voxels | None]:
        """The span of each volume that holds these rows, and where they are in it."""
        wanted = None if self.voxels is None else self.voxels[rows]
        first, last = (rows.start, rows.stop - 1) if wanted is None else (int(wanted[0]), int(wanted[-1]))
        span = Span(self.n_timepoints, last + 1 - first, self.dtype, partial(self._read, first))
        return span, None if wanted is None else wanted - first

    def _read(self, first: int, number: int, row: Array) -> None:
        place = self.offset + (number * self.n_voxels + first) * self.dtype.itemsize
        done = files.pread_into(self.fd, row.view(np.uint8).data, place)
        if done < row.nbytes:
            raise DamagedImageError(f"{self.name} is truncated: it ends after {place + done} bytes")


@contextlib.contextmanager
def _volumes_in_a_file(source: Source, voxels: Voxels | None, folder: Path) -> Iterator[_Volumes]:
    n_timepoints, dtype = source.n_timepoints, source.dtype
    if layout := _plain(source):
        with source.unchanged(), open(layout.path, "rb", buffering=0) as plain:
            place = layout.offset, source.n_voxels
            yield _Volumes(source.name, plain.fileno(), *place, n_timepoints, dtype, voxels)
        return
    n_voxels = source.n_voxels if voxels is None else len(voxels)
    with open(files.scratch(folder), "r+b") as copy:
        _copy(source, voxels, n_voxels, copy.fileno())
        yield _Volumes(source.name, copy.fileno(), 0, n_voxels, n_timepoints, dtype, None)


def _copy(source: Source, voxels: Voxels | None, n_voxels: int, fd: int) -> None:
    place = 0
    try:
        step = _copying_volumes(source, n_voxels)
        with loader.blocks(source, voxels, step) as blocks:
            for _, block in blocks:
                files.pwrite_all(fd, block.reshape(-1).view(np.uint8).data, place)
                place += block.nbytes
    except OSError as error:
        if isinstance(error, DamagedImageError):
            raise
        nbytes = n_voxels * source.n_timepoints * source.dtype.itemsize
        raise SegmentError(
            f"no copy of {source.name} ({format_bytes(nbytes)}) can be made: {error}"
        ) from error
