"""Reductions: one value per region and volume.

Covers: the strategies, on rows of an image that is held and on volumes that pass by, with the same bits.
Does not cover: which voxels make a region, who runs a reduction (``signals``, ``pool``).
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sharedmask.compute.piles import Pile, piles
from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.sources.values import (
    PIECE_BYTES,
    REGION_BYTES,
    VOLUMES_BYTES,
    Conversion,
    convert,
    pieces,
    scale,
)
from sharedmask.typing import Array

# --- one value per region and volume -------------------------------------------------------------


def reduce_regions(
    rows: Array,
    finite: bool,
    out: Array,
    conversion: Conversion,
    strategy: str,
    index: NDArray[np.intp],
    offsets: NDArray[np.intp],
    first: int,
    weights: Array | None = None,
) -> None:
    """``out[first + i]`` = one value per volume over the rows ``index[offsets[i]:offsets[i + 1]]``.

    ``weights`` are those of the rows at ``index``, for ``weighted_mean``.
    """
    exact = finite and not conversion.is_scaled and np.can_cast(rows.dtype, np.float64)
    keeps = exact and (strategy in SUMS or strategy in EXTREMES)
    nbytes = PIECE_BYTES if strategy == "pc1" else REGION_BYTES  # pieces show in its bits
    n_timepoints, policy = rows.shape[1], conversion.nan_policy
    most = min(len(index), max(1, nbytes // (n_timepoints * 8)))
    # Buffers that stay in a core's cache: threads that allocate wait for each other.
    taken, scratch = np.empty((most, n_timepoints), rows.dtype), np.empty((most, n_timepoints))

    def region(index: NDArray[np.intp], own: Array | None = None) -> _Rows:
        return _Rows(rows, index, conversion, exact, keeps, taken, scratch, own)

    with np.errstate(invalid="ignore"):
        if strategy in PILED and n_timepoints > 1 and (exact or policy in ("propagate", "zero")):
            for pile in piles(offsets, most):
                source, numbers = region(index[pile.places]), first + pile.regions
                if source.n_voxels > most:
                    out[numbers] = STRATEGIES[strategy](source)
                else:
                    out[numbers] = _piled(pile, next(iter(source)), strategy)
            return
        edges = offsets.tolist()
        for start, stop in groups(offsets, most):
            span, to = slice(edges[start], edges[stop]), slice(first + start, first + stop)
            source = region(index[span], None if weights is None else weights[span])
            if source.n_voxels > most:
                out[to] = STRATEGIES[strategy](source)
                continue
            inside = [edge - span.start for edge in edges[start : stop + 1]]
            out[to] = _reduced(next(iter(source)), inside, strategy, policy == "omit", source.weights)


def _piled(pile: Pile, values: Array, strategy: str) -> Array:
    """(n_regions, n_volumes) of the rows of a pile, which are overwritten."""
    rows = pile.of(values)
    if strategy in EXTREMES:
        return np.asarray(EXTREMES[strategy].reduce(rows, axis=1))
    values[pile.left] = 0
    totals = np.add.reduce(rows, 1, np.float64)
    if strategy in SQUARES:
        _squares(rows, (totals / pile.sizes)[:, None], rows)
        values[pile.left] = 0
        np.add.reduce(rows, 1, out=totals)
    return _finished(totals, pile.sizes, strategy)


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
        One of :data:`BY_VOLUME`. The numbers are those of :func:`reduce_regions`, to the bit.
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
    sizes = np.diff(offsets)
    if whole := whole_sums(volumes.dtype, conversion, strategy, offsets):
        for volume, values in zip(volumes, out, strict=True):
            totals = np.add.reduceat(volume, offsets[:-1], dtype=whole)
            values[...] = totals / sizes if strategy == "mean" else totals
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


def add_rows(
    rows: Array, index: NDArray[np.intp], regions: NDArray[np.intp], totals: Array, conversion: Conversion
) -> bool:
    """Add ``rows[index[i]]`` to ``totals[regions[i]]``, for rows that pass by.

    Rows are added one after the other, as in :func:`reduce_regions`, whose sums these are to the bit where
    the rows of a region come in its order.

    Returns
    -------
    bool
        Whether all true values are finite.

    Examples
    --------
    >>> plain, totals = Conversion(1.0, 0.0, np.dtype("i2"), np.dtype("f8")), np.zeros((2, 1))
    >>> rows = np.array([[1], [2], [6]], "i2")
    >>> add_rows(rows, np.array([0, 1, 2]), np.array([0, 1, 0]), totals, plain)
    True
    >>> totals.ravel().tolist()
    [7.0, 2.0]
    """
    order = np.argsort(regions, kind="stable")
    ends = np.flatnonzero(np.diff(regions[order])) + 1
    most = max(1, REGION_BYTES // (8 * rows.shape[1]))
    scratch, finite = np.empty((most + 1, rows.shape[1])), True
    with np.errstate(invalid="ignore"):
        for places in np.split(order, ends):
            total = totals[regions[places[0]]]
            for piece in pieces(len(places), 1, most):
                stored = rows[index[places[piece]]]
                values = scratch[: len(stored) + 1]
                values[0] = total
                np.copyto(values[1:], scale(stored, conversion), casting="unsafe")
                if np.isfinite(added(values, total)).all():  # so are all values
                    continue
                finite = convert(stored, values[1:], conversion) and finite
                added(values, total)
    return finite


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
        regions = [_Values(values[a:b], omits, own) for (a, b), own in zip(spans, each, strict=True)]
        return np.array([STRATEGIES[strategy](region) for region in regions])
    # Threads leave the interpreter for each sum, and wait for each other where they come back: little else.
    totals = np.empty((len(spans), values.shape[1]))
    for total, (start, stop) in zip(totals, spans, strict=True):
        part = values[start:stop]
        added(part, total)
        if strategy in SQUARES:
            added(_squares(part, total / len(part), part), total)
    return _finished(totals, np.diff(edges)[:, None], strategy)


def _finished(totals: Array, sizes: NDArray[np.intp], strategy: str) -> Array:
    """What sums come to, of values or of squares, (n_regions, n_volumes)."""
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


class _Region(Protocol):
    """The series of one region's voxels."""

    def __iter__(self) -> Iterator[Array]:
        """Rows, piece by piece, as float64, or as stored for sums; until the next is asked for."""
        ...

    def volumes(self) -> Iterator[tuple[slice, Array]]:
        """All rows of some volumes at a time, as float64, and which volumes those are."""
        ...

    @property
    def scratch(self) -> Array:
        """Room for a piece as float64, which may be the piece's own."""
        ...

    @property
    def weights(self) -> Array | None: ...
    @property
    def omits(self) -> bool: ...
    @property
    def n_voxels(self) -> int: ...
    @property
    def n_timepoints(self) -> int: ...


@dataclass(frozen=True)
class _Rows:
    """A region in an image that is held."""

    rows: Array
    index: NDArray[np.intp]
    conversion: Conversion
    exact: bool
    """Whether stored values are the true ones, and float64 holds them."""
    keeps: bool
    """Whether pieces are then as they are stored."""
    taken: Array
    scratch: Array
    weights: Array | None = None

    def __iter__(self) -> Iterator[Array]:
        step = len(self.taken)
        for start in range(0, self.n_voxels, step):
            index = self.index[start : start + step]
            stored = self.rows.take(index, 0, self.taken[: len(index)], "clip")
            yield stored if self.keeps else self._converted(stored, self.scratch[: len(index)])

    def volumes(self) -> Iterator[tuple[slice, Array]]:
        for span in pieces(self.n_timepoints, self.n_voxels * 8, VOLUMES_BYTES):
            stored = self.rows[self.index, span]
            yield span, self._converted(stored, np.empty(stored.shape))

    def _converted(self, stored: Array, values: Array) -> Array:
        if self.exact:
            np.copyto(values, stored)
        else:
            convert(stored, values, self.conversion)
        return values

    @property
    def omits(self) -> bool:
        return self.conversion.nan_policy == "omit"

    @property
    def n_voxels(self) -> int:
        return len(self.index)

    @property
    def n_timepoints(self) -> int:
        return int(self.rows.shape[1])


@dataclass(frozen=True)
class _Values:
    """A region whose values are converted already."""

    values: Array
    omits: bool
    weights: Array | None = None

    def __iter__(self) -> Iterator[Array]:
        yield self.values

    def volumes(self) -> Iterator[tuple[slice, Array]]:
        yield slice(None), self.values

    @property
    def scratch(self) -> Array:
        return self.values

    @property
    def n_voxels(self) -> int:
        return len(self.values)

    @property
    def n_timepoints(self) -> int:
        return int(self.values.shape[1])


def _accumulate(parts: Iterator[Array]) -> Array:
    """Sum over rows, one row after the other.

    The order is that of ``scipy.ndimage``'s reductions, hence nilearn's bits: the sum so far
    goes in as the first row of the next piece, so that pieces leave no trace.
    """
    total: Array = added(next(parts)) + 0.0  # no sum is -0.0
    for values in parts:
        total = added(np.concatenate([total[None], values]))
    return total


def added(rows: Array, out: Array | None = None) -> Array:
    """The sum of rows, one after the other."""
    total = np.empty(rows.shape[1]) if out is None else out
    if len(total) > 1:
        np.add.reduce(rows, 0, np.float64, out=total)
        return total
    total[...] = np.add.accumulate(rows, axis=0, dtype=np.float64)[-1]  # numpy would add one column pairwise
    return total


def _sum(source: _Region) -> Array:
    return (
        _accumulate(np.nan_to_num(v, nan=0.0) for v in source) if source.omits else _accumulate(iter(source))
    )


def _count(source: _Region) -> Array | float:
    if source.omits:
        return _accumulate((~np.isnan(v)).astype(float) for v in source)
    return float(source.n_voxels)


def _mean(source: _Region) -> Array:
    return np.asarray(_sum(source) / _count(source))


def _weighted_mean(source: _Region) -> Array:
    assert source.weights is not None  # requests without weights are refused
    total: Array | float = float(np.sum(source.weights, dtype=np.float64))
    if source.omits:
        total = _accumulate(np.where(np.isnan(v), 0.0, w) for v, w in _weighted(source))
    return np.asarray(
        _accumulate(np.nan_to_num(v * w) if source.omits else v * w for v, w in _weighted(source)) / total
    )


def _weighted(source: _Region) -> Iterator[tuple[Array, Array]]:
    """Pieces of rows, and a column of their weights."""
    start = 0
    for values in source:
        assert source.weights is not None
        yield values, source.weights[start : start + len(values), None]
        start += len(values)


def _variance(source: _Region) -> Array:
    mean = _mean(source)
    squares = (_squares(v, mean, source.scratch[: len(v)]) for v in source)
    if source.omits:
        squares = (np.nan_to_num(s, nan=0.0) for s in squares)
    return np.asarray(_accumulate(squares) / _count(source))


def _squares(values: Array, mean: Array, out: Array) -> Array:
    return np.square(np.subtract(values, mean, out=out), out=out)


def _standard_deviation(source: _Region) -> Array:
    return np.asarray(np.sqrt(_variance(source)))


def _extreme(ufunc: np.ufunc, omitting: np.ufunc) -> Callable[[_Region], Array]:
    def reduction(source: _Region) -> Array:
        chosen = omitting if source.omits else ufunc
        best: Array | None = None
        for values in source:
            here = chosen.reduce(values, axis=0)
            best = here if best is None else chosen(best, here)
        assert best is not None
        return best

    return reduction


def _median(source: _Region) -> Array:
    middle = _nanmedian if source.omits else _middle
    result = np.empty(source.n_timepoints)
    for span, values in source.volumes():
        result[span] = middle(np.ascontiguousarray(values.T))
    return result


def _middle(values: Array) -> Array:
    return np.asarray(np.median(values, axis=1, overwrite_input=True))


def _nanmedian(values: Array) -> Array:
    empty = np.asarray(np.isnan(values).all(axis=1))
    filled = np.where(empty[:, None], 0.0, values)  # numpy warns of volumes without any value
    return np.where(empty, np.nan, np.nanmedian(filled, axis=1))


def _pc1(source: _Region) -> Array:
    """First principal time course, scaled as SPM's first eigenvariate.

    Voxel means are removed; the sign makes the voxels' weights sum to a positive number; the
    scale is the first singular value over the square root of the number of voxels.
    """
    if source.omits:
        raise ParameterError("strategy='pc1' needs every value: nan_policy='omit' does not apply")
    centred = (_centred(values) for values in source)
    n_voxels = source.n_voxels
    if n_voxels <= source.n_timepoints:
        rows = np.concatenate(list(centred))
        if not np.isfinite(rows).all():
            return np.full(source.n_timepoints, np.nan)
        power, vectors = np.linalg.eigh(rows @ rows.T)
        course, mean = vectors[:, -1] @ rows, rows.sum(axis=0)
    else:
        gram, mean = np.zeros((source.n_timepoints,) * 2), np.zeros(source.n_timepoints)
        for rows in centred:
            gram += rows.T @ rows
            mean += rows.sum(axis=0)
        if not np.isfinite(gram).all():
            return np.full(source.n_timepoints, np.nan)
        power, vectors = np.linalg.eigh(gram)
        course = vectors[:, -1]
    norm = np.linalg.norm(course)
    unit = course / norm if norm > 0 else course
    sign = -1.0 if float(mean @ unit) < 0 else 1.0
    return np.asarray(sign * unit * np.sqrt(max(power[-1], 0.0) / n_voxels))


def _centred(values: Array) -> Array:
    return np.asarray(values - values.mean(axis=1, keepdims=True))


STRATEGIES: dict[str, Callable[[_Region], Array]] = {
    "mean": _mean,
    "median": _median,
    "sum": _sum,
    "minimum": _extreme(np.minimum, np.fmin),
    "maximum": _extreme(np.maximum, np.fmax),
    "variance": _variance,
    "standard_deviation": _standard_deviation,
    "pc1": _pc1,
    "weighted_mean": _weighted_mean,
}
SUMS = frozenset({"sum", "mean"})
"""Strategies that are made of the sum of a region's rows."""
SQUARES = frozenset({"variance", "standard_deviation"})
"""Strategies that are made of the sum of squared differences from the mean."""
EXTREMES = {"minimum": np.minimum, "maximum": np.maximum}
PILED = SUMS | SQUARES | EXTREMES.keys()
"""Strategies whose regions are reduced side by side."""
BY_VOLUME = frozenset(STRATEGIES) - {"pc1"}
"""Strategies whose value of a volume needs no other volume."""
