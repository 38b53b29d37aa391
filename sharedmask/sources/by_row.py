"""Images whose files hold rows: the whole series of one element after the other.

Covers: reading some of the rows, forward, without the bytes of others where the file is plain; whole volumes
for who needs them; which rows have values. Does not cover: which files are so (``cifti``), mapping them
(``mapped_file``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.decoding.codecs import open_file, open_stream
from sharedmask.records import dataclass
from sharedmask.sources.layout import FileLayout
from sharedmask.sources.source import FileSource, Source
from sharedmask.sources.values import Conversion, all_finite, convert
from sharedmask.sources.volumes import VolumeReader
from sharedmask.system import files, platform
from sharedmask.typing import Array, Numbers

_BLOCK_BYTES = 2**20
_Read = Callable[[int, Array], int]
"""Fills rows from that place on; how many bytes there were."""


@dataclass(frozen=True, eq=False)
class RowSource(FileSource):
    """One image in a file, row by row."""

    @property
    def points(self) -> None:
        """Volumes do not lie one after the other: there is none where decoding could begin."""

    @property
    def layout(self) -> FileLayout | str:
        found = super().layout
        return replace(found, order="rows") if isinstance(found, FileLayout) else found

    @property
    def row_bytes(self) -> int:
        """Of one element's series."""
        return self.n_timepoints * self.dtype.itemsize

    @property
    def reading_bytes(self) -> int:
        return max(_BLOCK_BYTES, self.row_bytes)

    @property
    def is_mappable(self) -> bool:
        """Whether the rows can be looked at where they are."""
        return isinstance(self.layout, FileLayout)

    def load(
        self,
        out: Array,
        select: Numbers | None = None,
        conversion: Conversion | None = None,
    ) -> bool:
        """Fill ``out``, (n_selected, n_timepoints), with rows; as :func:`sharedmask.sources.loader.load`."""
        wanted = np.arange(self.n_voxels) if select is None else select
        scattered = None if np.all(wanted[1:] > wanted[:-1]) else _Scattered(wanted)
        finite = True
        for start, rows in self.blocks(wanted if scattered is None else scattered.distinct):
            true = rows
            if conversion is None:
                finite = finite and (rows.dtype.kind != "f" or all_finite(rows))
            else:
                true = np.empty(rows.shape, out.dtype)
                finite = convert(rows, true, conversion) and finite
            if scattered is None:
                out[start : start + len(rows)] = true
            else:
                scattered.write(out, start, true)
        return finite

    def blocks(
        self, wanted: Numbers, nbytes: int = _BLOCK_BYTES, before: int = 0
    ) -> Generator[tuple[int, Array], None, None]:
        """Stored rows of ascending numbers, and the place of the first in ``wanted``.

        They come after so many that mean nothing, and are valid until the next are asked for.
        """
        most = max(1, min(nbytes // self.row_bytes, len(wanted)))
        buffer = np.empty((before + most, self.n_timepoints), self.dtype)
        with self.unchanged(), self._reader(len(wanted) * 2 < self.n_voxels) as read:
            for start in range(0, len(wanted), most):
                numbers = wanted[start : start + most]
                rows = buffer[before : before + len(numbers)]
                for low, high in _runs(numbers):
                    self._fill_run(read, rows[low:high], int(numbers[low]))
                if self.foreign:
                    rows.byteswap(inplace=True)
                yield start, buffer[: before + len(numbers)]

    def _fill_run(self, read: _Read, rows: Array, first: int) -> None:
        place = first * self.row_bytes
        if (got := read(place, rows)) < rows.nbytes:
            raise self.truncated(place + got)

    @contextmanager
    def _reader(self, few: bool) -> Iterator[_Read]:
        """Reads at places that ascend; of ``few`` rows nothing is read ahead."""
        if not self.compressed and not self.is_remote:
            with open_file(self.file) as file:
                if few:
                    platform.advise_file(file.fileno(), 0, 0, "POSIX_FADV_RANDOM")
                yield lambda place, rows: files.pread_into(file.fileno(), _bytes(rows), self.offset + place)
            return
        with open_stream(self.file, self.name) as stream:
            done = stream.skip(self.offset) - self.offset

            def read(place: int, rows: Array) -> int:
                nonlocal done
                if place > done:
                    done += stream.skip(place - done)
                got = stream.readinto(_bytes(rows)) if place == done else 0
                done += got
                return got

            yield read
            stream.skip(self.nbytes - done)
            stream.finish()

    @contextmanager
    def _volumes(self) -> Iterator[VolumeReader]:
        rows = np.empty((self.n_voxels, self.n_timepoints), self.dtype)
        self.load(rows)
        yield VolumeReader(self, partial(_copy_next, iter(rows.T)))


def places_with_values(source: Source) -> Numbers:
    """Numbers of the places whose series are finite throughout and not 0 throughout: what was measured."""
    found, whole = np.zeros(source.n_voxels, bool), np.ones(source.n_voxels, bool)
    scaled = partial(apply_read_scaling, slope=source.slope, inter=source.inter)
    if isinstance(source, RowSource):
        with closing(source.blocks(np.arange(source.n_voxels))) as blocks:
            for start, stored in blocks:
                found[start : start + len(stored)] = _are_measured(scaled(stored))
        return np.flatnonzero(found)
    for volume in source.each_volume():
        values = scaled(volume)
        found |= values != 0
        whole &= np.isfinite(values)
    return np.flatnonzero(found & whole)


def _are_measured(rows: Array) -> Array:
    """Of each row, whether it is; a sum that is finite and not 0 proves it, as most are."""
    with np.errstate(over="ignore", invalid="ignore"):
        totals = np.add.reduce(rows, axis=1)
    found: Array = np.isfinite(totals) & (totals != 0)
    others = rows[~found]
    found[~found] = np.isfinite(others).all(axis=1) & (others != 0).any(axis=1)
    return found


def _copy_next(volumes: Iterator[Array], rows: Array, remaining: int) -> None:
    for row in rows:
        row[...] = next(volumes)


def _bytes(rows: Array) -> memoryview:
    view: memoryview = rows.reshape(-1).view(np.uint8).data
    return view


def _runs(numbers: Numbers) -> Iterator[tuple[int, int]]:
    """Where ascending numbers follow each other."""
    if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1:  # as most do, all of them
        return iter([(0, len(numbers))])
    ends = np.flatnonzero(np.diff(numbers) != 1) + 1
    return zip([0, *ends.tolist()], [*ends.tolist(), len(numbers)], strict=True)


class _Scattered:
    """Where rows go that are asked for in any order, some of them several times."""

    def __init__(self, wanted: Numbers) -> None:
        self.distinct, self._inverse = np.unique(wanted, return_inverse=True)
        self._order = np.argsort(self._inverse, kind="stable")
        self._ends = np.searchsorted(self._inverse[self._order], np.arange(len(self.distinct) + 1))

    def write(self, out: Array, start: int, rows: Array) -> None:
        to = self._order[self._ends[start] : self._ends[start + len(rows)]]
        out[to] = rows[self._inverse[to] - start]
