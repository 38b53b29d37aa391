"""Reductions: one value per region and volume.

Covers: regions of an image that is held and of volumes that pass by, with the same bits. Does not cover: what
one region's rows come to (``strategies``), rows that pass by (``row_sums``), which voxels make a region, who
runs a reduction (``signals``, ``pool``).

Rows that are held are reduced without a look at their values where that gives the same: no sum is finite of
which a value is not. Regions whose rows follow each other are reduced where they lie; of others rows are
copied, those of several regions side by side::

    where they lie  ->  side by side, unseen  ->  side by side, or one after the other, as float64
                   what is left              what is left
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from sharedmask.compute.piles import Stack, stacked
from sharedmask.compute.strategies import EXTREMES, SQUARES, STRATEGIES, SUMS, Values, added, squares_of
from sharedmask.records import dataclass
from sharedmask.sources.values import (
    PIECE_BYTES,
    REGION_BYTES,
    VOLUMES_BYTES,
    Conversion,
    convert,
    pieces,
)
from sharedmask.typing import Array, NDArray

_PILED = SUMS | SQUARES | EXTREMES.keys()
"""Strategies whose regions are reduced side by side."""
_AS_STORED = _PILED - SQUARES
"""Strategies that need no float64 of plain values."""
_PILE_BYTES = 2**20
"""Of rows side by side as they are stored: they stay in a core's cache with what they are copied from."""
_LEAST_VALUES = 2**14
"""Of a region that is reduced where it lies: a call has its own price, and threads wait for each other."""
_CONVERTED = 1024
"""Values that numpy converts at a time: they stay in a core's nearest cache until they are added."""

# --- rows that are held --------------------------------------------------------------------------


def parts(
    rows: Array,
    finite: bool,
    conversion: Conversion,
    strategy: str,
    index: NDArray[np.intp],
    offsets: NDArray[np.intp],
    weights: Array | None,
    n_parts: int,
) -> Iterator["Stack | _Regions"]:
    """All regions, ``index[offsets[i]:offsets[i + 1]]`` each, in about so many parts of like size.

    What threads would do in the interpreter, where each waits for the others, is done here once for all.
    """
    held = _Held.of(rows, finite, conversion, strategy, len(index))
    regions = _Regions(np.arange(len(offsets) - 1), index, offsets, weights)
    if held.piles(strategy):
        apart = np.zeros(len(regions.numbers), bool)
        if held.unseen(strategy) and strategy in _AS_STORED:
            apart = _lie_together(rows, regions)
        yield from _stacked(regions.only(~apart), held.most, n_parts)
        regions = regions.only(apart)
    n_voxels = len(regions.voxels)
    cuts = np.arange(1, n_parts) * n_voxels // max(1, n_parts)
    bounds = np.unique([0, *np.searchsorted(regions.offsets, cuts), len(regions.numbers)])
    for first, last in pairwise(bounds.tolist()):
        own = regions.offsets[first : last + 1]
        span = slice(own[0], own[-1])
        some = None if regions.weights is None else regions.weights[span]
        yield _Regions(regions.numbers[first:last], regions.voxels[span], own - own[0], some)


def _stacked(regions: "_Regions", most: int, n_parts: int) -> Iterator[Stack]:
    """Regions side by side, in piles of so many voxels, which are their places."""
    for stack in stacked(regions.offsets, most).parts(n_parts):
        yield stack._replace(numbers=regions.numbers[stack.numbers], places=regions.voxels[stack.places])


def reduce_part(
    rows: Array,
    finite: bool,
    out: Array,
    conversion: Conversion,
    strategy: str,
    first: int,
    part: "Stack | _Regions",
) -> None:
    """One of :func:`parts`: ``out[first + numbers[i]]`` = one value per volume over the rows of a region."""
    n_voxels = len(part.places if isinstance(part, Stack) else part.voxels)
    held = _Held.of(rows, finite, conversion, strategy, n_voxels)
    unseen, part = held.unseen(strategy), part._replace(numbers=part.numbers + first)
    with arithmetic():
        if isinstance(part, Stack):
            left = _reduced_in_piles(held, part, strategy, out, unseen)
        else:
            left = part
            if unseen and strategy in _AS_STORED:
                left = left.only(_reduced_in_place(held, left, strategy, out))
        if not held.piles(strategy, unseen=False):
            _reduced_in_turn(held, left, strategy, out)
        elif len(left.numbers):
            for stack in _stacked(left, held.most, 1):
                _reduced_in_piles(held, stack, strategy, out, False)


@contextmanager
def arithmetic(converted: int = _CONVERTED) -> Iterator[None]:
    """Values that are not finite are no news; so many values are converted at a time."""
    with np.errstate(invalid="ignore"):
        before = np.setbufsize(converted)
        try:
            yield
        finally:
            np.setbufsize(before)


class _Regions(NamedTuple):
    """Regions that are to be reduced."""

    numbers: NDArray[np.intp]
    """Where their values go."""
    voxels: NDArray[np.intp]
    offsets: NDArray[np.intp]
    weights: Array | None

    def only(self, which: NDArray[np.bool_]) -> "_Regions":
        """Some of them."""
        if which.all():
            return self
        sizes = np.diff(self.offsets)
        inside = np.repeat(which, sizes)
        weights = None if self.weights is None else self.weights[inside]
        return _Regions(
            self.numbers[which], self.voxels[inside], np.append(0, np.cumsum(sizes[which])), weights
        )


def _reduced_in_place(held: "_Held", regions: _Regions, strategy: str, out: Array) -> NDArray[np.bool_]:
    """Values of regions whose rows follow each other; which regions are left."""
    left = ~_lie_together(held.rows, regions)
    lying = np.flatnonzero(~left)
    for span in pieces(len(lying), 1, held.most):
        numbers = lying[span]
        sizes, places = np.diff(regions.offsets)[numbers], regions.voxels[regions.offsets[numbers]]
        totals = held.scratch[: len(numbers)]
        for total, place, size in zip(totals, places.tolist(), sizes.tolist(), strict=True):
            part = held.rows[place : place + size]
            if strategy in EXTREMES:
                EXTREMES[strategy].reduce(part, 0, part.dtype, total)
            else:
                added(part, total)
        values = _finished(totals, sizes[:, None], strategy)
        out[regions.numbers[numbers]] = values
        if not held.exact:
            left[numbers] = ~np.isfinite(values).all(axis=1)
    return left


def _lie_together(rows: Array, regions: _Regions) -> NDArray[np.bool_]:
    """Whether the rows of a region follow each other, and are worth a call."""
    if rows.strides[1] != rows.itemsize:  # numpy would add along the volumes, in another order
        return np.zeros(len(regions.numbers), bool)
    following = np.append(0, np.cumsum(np.diff(regions.voxels) == 1))
    start, last = regions.offsets[:-1], regions.offsets[1:] - 1
    worth = (last - start + 1) * rows.shape[1] >= _LEAST_VALUES
    found: NDArray[np.bool_] = (following[last] - following[start] == last - start) & worth
    return found


def _reduced_in_piles(held: "_Held", stack: Stack, strategy: str, out: Array, unseen: bool) -> _Regions:
    """Values of regions side by side; those that are left, because of values that are not finite.

    The places of ``stack`` are voxels already.
    """
    as_stored = unseen and strategy in _AS_STORED
    dtype = held.rows.dtype if as_stored and strategy in EXTREMES else np.dtype(float)
    totals = np.empty((len(stack.sizes), held.rows.shape[1]), dtype)
    n_large = stop = 0
    # A thread that comes back while another is in the interpreter sleeps, for 50 microseconds and more: all
    # that can be is done before and after.
    for pile in list(stack.piles()):
        start, stop = stop, stop + len(pile.regions)
        if len(pile.places) > held.most:
            n_large = stop
            totals[start] = STRATEGIES[strategy](held.region(pile.places, None, unseen, as_stored))
            continue
        values = held.taken_of(pile.places)
        if not as_stored:
            values = held.converted(values, unseen)
        pile.reduce(values, strategy, totals[start:stop])
    _finished(totals[n_large:], stack.sizes[n_large:, None], strategy)
    out[stack.numbers] = totals
    left = np.zeros(len(totals), bool)
    if unseen and not held.exact:
        left[:] = ~np.isfinite(totals).all(axis=1)
    offsets = np.append(0, np.cumsum(stack.sizes))
    return _Regions(stack.numbers, stack.places[~stack.left], offsets, None).only(left)


def _reduced_in_turn(held: "_Held", regions: _Regions, strategy: str, out: Array) -> None:
    """Values of regions one after the other."""
    edges, omits = regions.offsets.tolist(), held.conversion.nan_policy == "omit"
    for start, stop in groups(regions.offsets, held.most):
        span, to = slice(edges[start], edges[stop]), regions.numbers[start:stop]
        source = held.region(regions.voxels[span], None if regions.weights is None else regions.weights[span])
        if source.n_voxels > held.most:
            out[to] = STRATEGIES[strategy](source)
            continue
        inside = [edge - span.start for edge in edges[start : stop + 1]]
        out[to] = _reduced(next(iter(source)), inside, strategy, omits, source.weights)


# --- volumes that pass by ---------------------------------------------------------------


def whole_sums(
    dtype: np.dtype[Any], conversion: Conversion, strategy: str, offsets: NDArray[np.intp]
) -> type[np.signedinteger[Any]] | None:
    """In which integers the sums of all regions are exact, volume by volume; None if in none."""
    plain = strategy in SUMS and not conversion.is_scaled
    return _whole(dtype, int(np.diff(offsets).max())) if plain else None


def reduce_volumes(
    volumes: Array,
    out: Array,
    conversion: Conversion,
    strategy: str,
    offsets: NDArray[np.intp],
    weights: Array | None = None,
) -> bool:
    """``out[v, i]`` = one value of region ``i`` in volume ``v``, for volumes that pass by.

    Parameters
    ----------
    volumes : (n_volumes, n_voxels) array
        Stored values of the voxels of all regions, one region after the other.
    out : (n_volumes, n_regions) array
    conversion : Conversion
        How stored values become true ones, in float64.
    strategy : str
        One of :data:`BY_VOLUME`. The numbers are those of :func:`reduce_part`, to the bit.
    offsets : (n_regions + 1,) array of int
        Region ``i`` is ``offsets[i]:offsets[i + 1]``.
    weights : (n_voxels,) array, optional
        For ``weighted_mean``.

    Returns
    -------
    bool
        Whether all true values are finite.

    Examples
    --------
    >>> plain = Conversion(1.0, 0.0, np.dtype("i2"), np.dtype("f8"))
    >>> out = np.empty((1, 2))
    >>> reduce_volumes(np.array([[1, 2, 6]], "i2"), out, plain, "mean", np.array([0, 2, 3]))
    True
    >>> out
    array([[1.5, 6. ]])
    """
    if whole := whole_sums(volumes.dtype, conversion, strategy, offsets):
        add_volumes(volumes, out, strategy, offsets, np.diff(offsets), whole)
        return True
    finite, omits = True, conversion.nan_policy == "omit"
    with np.errstate(invalid="ignore"):
        for first, last in groups(offsets, 2 * PIECE_BYTES // (8 * len(volumes))):
            edges = offsets[first : last + 1]
            own = None if weights is None else weights[edges[0] : edges[-1]]
            for span in pieces(len(volumes), (edges[-1] - edges[0]) * 8, VOLUMES_BYTES):
                stored = volumes[span, edges[0] : edges[-1]].T
                values, inside = np.empty(stored.shape), (edges - edges[0]).tolist()
                finite = convert(stored, values, conversion) and finite
                out[span, first:last] = _reduced(values, inside, strategy, omits, own).T
    return finite


def add_volumes(
    volumes: Array,
    out: Array,
    strategy: str,
    offsets: NDArray[np.intp],
    sizes: NDArray[np.intp],
    whole: type[np.signedinteger[Any]],
) -> None:
    """The same of values whose sums are exact in those integers."""
    starts = offsets[:-1]
    for volume, values in zip(volumes, out, strict=True):
        totals = np.add.reduceat(volume, starts, dtype=whole)
        values[...] = totals / sizes if strategy == "mean" else totals


def is_plain(dtype: np.dtype[Any], conversion: Conversion) -> bool:
    """Whether stored values that are finite are the true ones, and float64 holds them."""
    return not conversion.is_scaled and np.can_cast(dtype, np.float64)


def _whole(stored: np.dtype[Any], largest: int) -> type[np.signedinteger[Any]] | None:
    """Integers that hold the sum of so many values, if float64 would too: then the order does not show."""
    if stored.kind not in "iu" or stored.itemsize > 4 or largest > 2**21:
        return None
    return np.int32 if stored.itemsize <= 2 and largest < 2**15 else np.int64


def _reduced(values: Array, edges: list[int], strategy: str, omits: bool, weights: Array | None) -> Array:
    """(n_regions, n_volumes) of the rows of each region, which lie one after the other."""
    spans = list(pairwise(edges))
    if omits or strategy not in SUMS | SQUARES:
        each = [None if weights is None else weights[start:stop] for start, stop in spans]
        regions = [Values(values[a:b], omits, own) for (a, b), own in zip(spans, each, strict=True)]
        return np.array([STRATEGIES[strategy](region) for region in regions])
    # Threads leave the interpreter for each sum, and wait for each other where they come back: little else.
    totals = np.empty((len(spans), values.shape[1]))
    for total, (start, stop) in zip(totals, spans, strict=True):
        part = values[start:stop]
        added(part, total)
        if strategy in SQUARES:
            added(squares_of(part, total / len(part), part), total)
    return _finished(totals, np.diff(edges)[:, None], strategy)


def _finished(totals: Array, sizes: NDArray[np.intp], strategy: str) -> Array:
    """What they come to, (n_regions, n_volumes): sums of values or of squares, or extremes."""
    if strategy in EXTREMES:
        return totals
    totals += 0.0  # no sum is -0.0
    if strategy != "sum":
        totals /= sizes
    return np.sqrt(totals, out=totals) if strategy == "standard_deviation" else totals


def groups(offsets: NDArray[np.intp], most: int) -> Iterator[tuple[int, int]]:
    """The first and the last of regions that follow each other and have so many voxels; at least one each."""
    first, n_regions = 0, len(offsets) - 1
    while first < n_regions:
        fitting = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        last = max(fitting, first + 1)
        yield first, last
        first = last


@dataclass(frozen=True)
class _Held:
    """Rows of an image, and room for some of them as they are stored and as float64."""

    rows: Array
    conversion: Conversion
    plain: bool
    """Whether stored values that are finite are the true ones, and float64 holds them."""
    exact: bool
    """Whether all are, as they are stored."""
    alone: int
    """Rows at a time of a larger region: what it came to so far is copied with them."""
    taken: Array
    scratch: Array

    @classmethod
    def of(cls, rows: Array, finite: bool, conversion: Conversion, strategy: str, n_voxels: int) -> "_Held":
        plain = is_plain(rows.dtype, conversion)
        exact = plain and (finite or rows.dtype.kind in "iu" or conversion.nan_policy == "propagate")
        nbytes, itemsize, squared = REGION_BYTES, 8, plain and strategy in SQUARES
        if strategy == "pc1":
            nbytes = PIECE_BYTES  # pieces show in its bits
        elif strategy in _PILED and not squared:
            nbytes, itemsize = _PILE_BYTES, rows.itemsize if plain else 8
        most = max(1, min(n_voxels, nbytes // (rows.shape[1] * itemsize)))
        alone = max(1, min(most, _PILE_BYTES // (rows.shape[1] * 8))) if squared else most
        # Buffers that stay in a core's cache: threads that allocate wait for each other.
        taken, scratch = np.empty((most, rows.shape[1]), rows.dtype), np.empty((most, rows.shape[1]))
        # Parts of plain arrays are made quicker than of a subclass.
        return cls(np.asarray(rows), conversion, plain, exact, alone, taken, scratch)

    @property
    def most(self) -> int:
        """Rows at a time."""
        return len(self.taken)

    def unseen(self, strategy: str) -> bool:
        """Whether values are reduced without a look at them, which what they come to shows."""
        summed = strategy in SUMS | SQUARES
        return self.several and self.plain and (summed or (self.exact and strategy in EXTREMES))

    def piles(self, strategy: str, unseen: bool = True) -> bool:
        """Whether regions are reduced side by side, perhaps unseen."""
        seen = self.exact or self.conversion.nan_policy in ("propagate", "zero")
        return self.several and strategy in _PILED and (seen or (unseen and self.unseen(strategy)))

    @property
    def several(self) -> bool:
        """Of one volume numpy adds a column in another order."""
        return len(self.scratch[0]) > 1

    def taken_of(self, index: NDArray[np.intp]) -> Array:
        """At most so many, as they are stored; until others are taken."""
        return self.rows.take(index, 0, self.taken[: len(index)], "clip")

    def converted(self, stored: Array, unseen: bool, out: Array | None = None) -> Array:
        values = self.scratch[: len(stored)] if out is None else out
        if unseen or self.exact:
            np.copyto(values, stored)
        else:
            convert(stored, values, self.conversion)
        return values

    def region(
        self,
        index: NDArray[np.intp],
        weights: Array | None = None,
        unseen: bool = False,
        as_stored: bool = False,
    ) -> "_Rows":
        return _Rows(self, index, weights, unseen, as_stored)


@dataclass(frozen=True)
class _Rows:
    """A region in an image that is held."""

    held: _Held
    index: NDArray[np.intp]
    weights: Array | None
    unseen: bool
    """Whether values stay what they are, finite or not."""
    as_stored: bool

    def __iter__(self) -> Iterator[Array]:
        held = self.held
        step = held.alone if self.n_voxels > held.most else held.most
        for start in range(0, self.n_voxels, step):
            index = self.index[start : start + step]
            stored = held.taken_of(index)
            yield stored if self.as_stored else held.converted(stored, self.unseen)

    def volumes(self) -> Iterator[tuple[slice, Array]]:
        for span in pieces(self.n_timepoints, self.n_voxels * 8, VOLUMES_BYTES):
            stored = self.held.rows[self.index, span]
            yield span, self.held.converted(stored, self.unseen, np.empty(stored.shape))

    @property
    def scratch(self) -> Array:
        return self.held.scratch

    @property
    def omits(self) -> bool:
        return not self.unseen and self.held.conversion.nan_policy == "omit"

    @property
    def n_voxels(self) -> int:
        return len(self.index)

    @property
    def n_timepoints(self) -> int:
        return int(self.held.rows.shape[1])
