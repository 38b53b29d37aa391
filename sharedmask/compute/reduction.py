"""Reductions: one value per region and volume.

Covers: the strategies, on rows of an image that is held and on volumes that pass by, with the same bits.
Does not cover: which voxels make a region, who runs a reduction (``signals``, ``pool``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import ParameterError
from sharedmask.sources.values import PIECE_BYTES, VOLUMES_BYTES, Conversion, convert, pieces
from sharedmask.typing import Array

# --- one value per region and volume -------------------------------------------------------------


def reduce_region(
    rows: Array,
    finite: bool,
    out: Array,
    conversion: Conversion,
    strategy: str,
    index: NDArray[np.intp],
    column: int,
) -> None:
    """``out[column]`` = one value per volume over the rows of one region."""
    source = _Rows(rows, index, conversion)
    with np.errstate(invalid="ignore"):
        out[column] = STRATEGIES[strategy](source)


def reduce_volumes(
    volumes: Array, out: Array, conversion: Conversion, strategy: str, offsets: NDArray[np.intp]
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
        One of :data:`BY_VOLUME`. The numbers are those of :func:`reduce_region`, to the bit.
    offsets : (n_regions + 1,) array of int
        Region ``i`` is ``offsets[i]:offsets[i + 1]``.

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
    finite, reduction = True, STRATEGIES[strategy]
    omits = conversion.nan_policy == "omit"
    with np.errstate(invalid="ignore"):
        for first, last in _groups(offsets, len(volumes)):
            start, stop = offsets[first], offsets[last]
            for span in pieces(len(volumes), (stop - start) * 8, VOLUMES_BYTES):
                stored = volumes[span, start:stop].T
                values = np.empty(stored.shape)
                finite = convert(stored, values, conversion) and finite
                for column in range(first, last):
                    own = values[offsets[column] - start : offsets[column + 1] - start]
                    out[span, column] = reduction(_Values(own, omits))
    return finite


def _groups(offsets: NDArray[np.intp], n_volumes: int) -> Iterator[tuple[int, int]]:
    """Regions one after the other whose values go through a core's cache together; at least one."""
    most = PIECE_BYTES // (8 * n_volumes)
    first, n_regions = 0, len(offsets) - 1
    while first < n_regions:
        fitting = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        last = max(fitting, first + 1)
        yield first, last
        first = last


class _Region(Protocol):
    """The series of one region's voxels, as float64."""

    def __iter__(self) -> Iterator[Array]:
        """Rows, piece by piece."""
        ...

    def volumes(self) -> Iterator[tuple[slice, Array]]:
        """All rows of some volumes at a time, and which volumes those are."""
        ...

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

    def __iter__(self) -> Iterator[Array]:
        for piece in pieces(self.n_voxels, self.n_timepoints * 8):
            yield self._converted(self.rows[self.index[piece]])

    def volumes(self) -> Iterator[tuple[slice, Array]]:
        for span in pieces(self.n_timepoints, self.n_voxels * 8, VOLUMES_BYTES):
            yield span, self._converted(self.rows[self.index, span])

    def _converted(self, stored: Array) -> Array:
        values = np.empty(stored.shape)
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

    def __iter__(self) -> Iterator[Array]:
        yield self.values

    def volumes(self) -> Iterator[tuple[slice, Array]]:
        yield slice(None), self.values

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
    total: Array = _added(next(parts)) + 0.0  # no sum is -0.0
    for values in parts:
        total = _added(np.concatenate([total[None], values]))
    return total


def _added(rows: Array) -> Array:
    if rows.shape[1] == 1:  # numpy would add a single column pairwise
        return np.asarray(np.add.accumulate(rows, axis=0)[-1])
    return np.asarray(np.add.reduce(rows, axis=0))


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


def _variance(source: _Region) -> Array:
    mean = _mean(source)
    squares = ((v - mean) ** 2 for v in source)
    if source.omits:
        squares = (np.nan_to_num(s, nan=0.0) for s in squares)
    return np.asarray(_accumulate(squares) / _count(source))


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
    middle = _nanmedian if source.omits else np.median
    result = np.empty(source.n_timepoints)
    for span, values in source.volumes():
        result[span] = middle(values, axis=0)
    return result


def _nanmedian(values: Array, axis: int) -> Array:
    empty = np.isnan(values).all(axis=axis)
    filled = np.where(empty, 0.0, values)  # numpy warns of columns without any value
    return np.where(empty, np.nan, np.nanmedian(filled, axis=axis))


def _pc1(source: _Region) -> Array:
    """First principal time course, scaled as SPM's first eigenvariate.

    Voxel means are removed; the sign makes the voxels' weights sum to a positive number; the
    scale is the first singular value over the square root of the number of voxels.
    """
    if source.omits:
        raise ParameterError("strategy='pc1' needs every value: nan_policy='omit' does not apply")
    centred = (values - values.mean(axis=1, keepdims=True) for values in source)
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


STRATEGIES: dict[str, Callable[[_Region], Array]] = {
    "mean": _mean,
    "median": _median,
    "sum": _sum,
    "minimum": _extreme(np.minimum, np.fmin),
    "maximum": _extreme(np.maximum, np.fmax),
    "variance": _variance,
    "standard_deviation": _standard_deviation,
    "pc1": _pc1,
}
BY_VOLUME = frozenset(STRATEGIES) - {"pc1"}
"""Strategies whose value of a volume needs no other volume."""
