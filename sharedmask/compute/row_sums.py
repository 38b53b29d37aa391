"""Sums of regions of rows that pass by: each row goes to its regions as it is read.

Covers: regions whose rows follow each other, which are added where they lie; others side by side; the bits of
``reduction``. Does not cover: reading rows (``by_row``), volumes that pass by (``steps``).

A region goes on from one block of rows to the next by what it came to so far, as three rows of float32 whose
sum that is, in the place of rows before it, which nobody needs any more::

    block      . . . | a a a b b b b      b comes to s; a part of it follows in the next block:
    next       . s s s b b c c c c c      rows are added one after the other, s before the first
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sharedmask.compute.piles import stacked
from sharedmask.compute.reduction import arithmetic, is_plain
from sharedmask.compute.strategies import added
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.sources.by_row import RowSource
from sharedmask.sources.values import Conversion, convert, pieces
from sharedmask.typing import Array, NDArray, Numbers

ROWS_BEFORE = 3
"""Room for what a region came to so far: numbers of float32 that have more digits than one of float64."""
_BLOCK_BYTES = 2 * 2**20  # of rows that follow each other: they stay in a core's cache from reading to adding
_PILED_BYTES = 8 * 2**20  # of scattered ones: a block has its own price
_PILE_BYTES = 2**20
_LEAST_VALUES = 2**14  # of rows that follow each other: a call has its own price


@dataclass(frozen=True, eq=False)
class _Parts:
    """Where rows of one region follow each other; those of all regions, in the order of their first rows."""

    starts: Numbers
    stops: Numbers
    regions: Numbers

    def of(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The region, and what begins and ends where in a block of rows."""
        here = np.flatnonzero((self.starts < stop) & (self.stops > start))
        low, high = np.maximum(self.starts[here], start) - start, np.minimum(self.stops[here], stop) - start
        return zip(self.regions[here].tolist(), low.tolist(), high.tolist(), strict=True)


@dataclass(frozen=True, eq=False)
class RowSums:
    """What regions come to."""

    wanted: Numbers
    """The rows to read, ascending."""
    totals: Array
    """(n_regions, n_timepoints)"""
    conversion: Conversion
    parts: _Parts
    places: Numbers
    """In ``wanted``, of the rows of other regions, ascending."""
    regions: Numbers
    """Which regions those are."""

    @classmethod
    def of(
        cls, regions: Regions, n_timepoints: int, dtype: np.dtype[np.generic], conversion: Conversion
    ) -> RowSums:
        """Nothing is added yet.

        Examples
        --------
        >>> from sharedmask import Grid
        >>> regions = Regions.from_labels(np.array([[[1, 2, 1]]]), Grid((1, 1, 3), np.eye(4)))
        >>> plain = Conversion(1.0, 0.0, np.dtype("i2"), np.dtype("f8"))
        >>> sums, rows = RowSums.of(regions, 1, np.dtype("i2"), plain), np.zeros((3 + 3, 1), "i2")
        >>> rows[3:, 0] = 1, 2, 6
        >>> sums.add(0, rows)
        True
        >>> sums.totals.ravel().tolist()
        [7.0, 2.0]
        """
        wanted, owner = regions.union, np.repeat(np.arange(len(regions)), regions.sizes)
        places = np.searchsorted(wanted, regions.indices)
        begins = np.diff(places, prepend=-2) != 1
        begins[regions.offsets[:-1]] = True
        first = np.flatnonzero(begins)
        lengths, whose = np.diff(first, append=len(places)), owner[first]
        lie = regions.sizes * n_timepoints >= np.bincount(whose) * _LEAST_VALUES
        lie &= is_plain(dtype, conversion)
        which = first[lie[whose]]
        which = which[order := np.argsort(places[which], kind="stable")]
        lengths = lengths[lie[whose]][order]
        parts = _Parts(places[which], places[which] + lengths, owner[which])
        others = np.flatnonzero(~lie[owner])
        others = others[np.argsort(places[others], kind="stable")]
        totals = np.zeros((len(regions), n_timepoints))
        return cls(wanted, totals, conversion, parts, places[others], owner[others])

    @property
    def block_bytes(self) -> int:
        """Of rows that are best read at a time."""
        return _PILED_BYTES if len(self.places) else _BLOCK_BYTES

    def add(self, start: int, rows: Array) -> bool:
        """Add the wanted rows from ``start`` on, which come after ``ROWS_BEFORE`` others; changes them.

        Returns whether all true values are finite.
        """
        stop, finite = start + len(rows) - ROWS_BEFORE, True
        with arithmetic():
            if len(self.places):
                span = slice(*np.searchsorted(self.places, [start, stop]))
                at, owners = self.places[span] - start + ROWS_BEFORE, self.regions[span]
                finite = self._add_piles(rows, at, owners)
            for region, low, high in self.parts.of(start, stop):
                finite = self._add_part(rows, low, high, region) and finite
        return finite

    def _add_part(self, rows: Array, low: int, high: int, region: int) -> bool:
        """Add rows where they lie, if that can be done."""
        total, first = self.totals[region], low + ROWS_BEFORE
        before = total.copy()
        if before.any() and rows.dtype == np.float32:
            first = low
            _split(before, rows[low : low + ROWS_BEFORE])
        elif before.any():
            return self._add_alone(rows, low, high, region)
        added(rows[first : high + ROWS_BEFORE], total)
        total += 0.0  # no sum is -0.0
        if np.isfinite(total).all():
            return True
        total[...] = before
        return self._add_alone(rows, low, high, region)

    def _add_alone(self, rows: Array, low: int, high: int, region: int) -> bool:
        at = np.arange(low, high) + ROWS_BEFORE
        return self._add_piles(rows, at, np.full(len(at), region))

    def _add_piles(self, rows: Array, at: Numbers, owners: Numbers) -> bool:
        """Add rows side by side, each region's after what it came to so far."""
        order = np.argsort(
            owners.astype(np.min_scalar_type(len(self.totals))), kind="stable"
        )  # 16 bits: fast
        at, owners = at[order], owners[order]
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        most, finite = max(1, _PILE_BYTES // (8 * rows.shape[1])), True
        for pile in stacked(np.append(starts, len(at)), most).piles() if len(at) else ():
            numbers, shape = owners[starts[pile.regions]], (len(pile.regions), -1)
            places, left = at[pile.places].reshape(shape).T, pile.left.reshape(shape).T
            for span in pieces(len(places), len(numbers), most):
                totals = self.totals[numbers]
                made = self._as_stored(rows, places[span], left[span], totals)
                if made is None:
                    values = np.empty((1 + len(places[span]), *totals.shape))
                    values[0] = totals
                    finite = convert(rows.take(places[span], 0), values[1:], self.conversion) and finite
                    values[1:][left[span]] = 0
                    made = _one_by_one(values)
                self.totals[numbers] = made
        return finite

    def _as_stored(
        self, rows: Array, places: Numbers, left: NDArray[np.bool_], totals: Array
    ) -> Array | None:
        """``totals`` and the rows at ``places``, but those that are left; None if that is not finite."""
        if rows.dtype != np.float32 or not is_plain(rows.dtype, self.conversion):
            return None
        values = np.empty((ROWS_BEFORE + len(places), *totals.shape), rows.dtype)
        _split(totals, values[:ROWS_BEFORE])
        rows.take(places, 0, values[ROWS_BEFORE:], "clip")
        values[ROWS_BEFORE:][left] = 0
        made = _one_by_one(values)
        return made if np.isfinite(made).all() else None


def block_bytes(source: RowSource) -> int:
    """Of the rows that are read at a time, at most."""
    return min(max(_PILED_BYTES, source.row_bytes), source.nbytes) + ROWS_BEFORE * source.row_bytes


def _split(totals: Array, out: Array) -> None:
    """Numbers of float32 whose sum is that of float64, if that is finite."""
    with np.errstate(over="ignore"):
        for part in out:
            part[...] = totals
            totals = totals - part


def _one_by_one(values: Array) -> Array:
    """The sum along the first axis."""
    if values[0].size > 1:
        return np.asarray(np.add.reduce(values, 0, np.float64))
    return np.asarray(np.add.accumulate(values, 0, np.float64)[-1])  # numpy would add one column pairwise
