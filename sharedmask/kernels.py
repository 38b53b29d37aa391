"""Pure array functions that workers run: gather, convert, reduce, clean.

Covers: what happens to the rows of an image (one row per voxel, each the voxel's time series).
Does not cover: where rows live (``segments``), who runs a kernel (``pool``), which voxels make a
region (``regions``). No files and no processes here; nilearn is imported only to clean.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import ParameterError

Array = NDArray[Any]
NanPolicy = Literal["zero", "propagate", "raise", "omit"]

# Work goes through pieces that stay in a core's cache: whatever follows the gather then costs
# arithmetic only, not another trip to memory.
_PIECE_BYTES = 256 * 1024
# What needs all rows of a volume at once, picked out of every row, goes through few, larger pieces.
_VOLUMES_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Conversion:
    """How stored values become results: scaling, non-finite values, dtype, in this order.

    ``scaled`` is the dtype that nibabel's ``apply_read_scaling`` gives for these values; the
    arithmetic below is the same, so the bits are too.
    """

    slope: float
    inter: float
    scaled: np.dtype[Any]
    result: np.dtype[Any]
    nan_policy: NanPolicy = "propagate"
    image: str = "the image"

    def keeps(self, stored: np.dtype[Any], finite: bool) -> bool:
        """Whether stored values are already the results."""
        checked = self.nan_policy != "propagate" and not finite and stored.kind == "f"
        return stored == self.result and not self.is_scaled and not checked

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)


def scale(stored: Array, conversion: Conversion) -> Array:
    """True values of stored ones; the argument itself where no scaling is needed."""
    if not conversion.is_scaled:
        return stored
    values = stored
    if conversion.slope != 1.0:
        values = values * np.asarray(conversion.slope, dtype=conversion.scaled)[None]
    if conversion.inter != 0.0:
        values = values + np.asarray(conversion.inter, dtype=conversion.scaled)[None]
    return values


def convert(stored: Array, out: Array, conversion: Conversion) -> bool:
    """Write the true values of ``stored`` into ``out`` (same shape), as ``conversion`` says.

    Returns
    -------
    bool
        Whether all true values are finite.
    """
    values = scale(stored, conversion)
    finite = values.dtype.kind != "f" or all_finite(values)
    if conversion.nan_policy != "propagate" and not finite:
        values = _without_nonfinite(values, conversion)
    np.copyto(out, values, casting="unsafe")
    return finite


def all_finite(values: Array) -> bool:
    """Whether no value is NaN or infinite; one fast pass in the usual case."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(values, axis=None)
    # A finite sum proves it; finite values whose sum overflows need the slow look.
    return bool(np.isfinite(total)) or bool(np.isfinite(values).all())


def _without_nonfinite(values: Array, conversion: Conversion) -> Array:
    bad = ~np.isfinite(values)
    if conversion.nan_policy == "raise":
        found = f"{np.count_nonzero(bad)} of {bad.size} values"
        raise ParameterError(f"{conversion.image}: {found} looked at are not finite, and nan_policy='raise'")
    return np.where(bad, values.dtype.type(0 if conversion.nan_policy == "zero" else np.nan), values)


def pieces(n_rows: int, row_bytes: int, piece_bytes: int = _PIECE_BYTES) -> Iterator[slice]:
    """Slices of rows of at most ``piece_bytes``; by default they fit a core's cache."""
    step = max(1, piece_bytes // max(row_bytes, 1))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def gather(
    rows: Array, finite: bool, out: Array, conversion: Conversion, index: NDArray[np.intp], start: int
) -> None:
    """``out[start + i] = rows[index[i]]``, converted."""
    target = out[start : start + len(index)]
    if conversion.keeps(rows.dtype, finite):
        # mode="clip" writes straight into `out`; the default checks indices through a copy of it.
        np.take(rows, index, axis=0, out=target, mode="clip")
        return
    for piece in pieces(len(index), rows.shape[1] * rows.itemsize):
        convert(rows[index[piece]], target[piece], conversion)


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
            for span in pieces(len(volumes), (stop - start) * 8, _VOLUMES_BYTES):
                stored = volumes[span, start:stop].T
                values = np.empty(stored.shape)
                finite = convert(stored, values, conversion) and finite
                for column in range(first, last):
                    own = values[offsets[column] - start : offsets[column + 1] - start]
                    out[span, column] = reduction(_Values(own, omits))
    return finite


def _groups(offsets: NDArray[np.intp], n_volumes: int) -> Iterator[tuple[int, int]]:
    """Regions one after the other whose values go through a core's cache together; at least one."""
    most = _PIECE_BYTES // (8 * n_volumes)
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
        for span in pieces(self.n_timepoints, self.n_voxels * 8, _VOLUMES_BYTES):
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


# --- cleaning and functions of the user ----------------------------------------------------------


@dataclass(frozen=True)
class Cleaning:
    """The parameters of :func:`nilearn.signal.clean`, by its names."""

    standardize: str | None = None
    detrend: bool = False
    confounds: Array | None = None
    sample_mask: NDArray[np.intp] | None = None
    low_pass: float | None = None
    high_pass: float | None = None
    t_r: float | None = None

    @property
    def needed(self) -> bool:
        filters = self.low_pass is not None or self.high_pass is not None
        series = self.confounds is not None or self.sample_mask is not None
        return self.standardize is not None or self.detrend or filters or series

    def apply(self, signals: Array) -> Array:
        """Clean ``signals`` of shape (n_timepoints, n_columns)."""
        from nilearn.signal import clean

        return np.asarray(
            clean(
                signals,
                standardize=self.standardize,
                detrend=self.detrend,
                confounds=self.confounds,
                sample_mask=self.sample_mask,
                low_pass=self.low_pass,
                high_pass=self.high_pass,
                t_r=self.t_r,
            )
        )


def signals_of(rows: Array, finite: bool, conversion: Conversion, index: NDArray[np.intp]) -> Array:
    """Fresh (n_timepoints, n_voxels) array, C-contiguous as nilearn's maskers give it."""
    taken = np.empty((len(index), rows.shape[1]), dtype=conversion.result)
    gather(rows, finite, taken, conversion, index, 0)
    return np.ascontiguousarray(taken.T)


def clean(
    rows: Array,
    finite: bool,
    out: Array,
    conversion: Conversion,
    cleaning: Cleaning,
    index: NDArray[np.intp],
    start: int,
) -> None:
    """``out[start + i]`` = the cleaned series of voxel ``index[i]``."""
    cleaned = cleaning.apply(signals_of(rows, finite, conversion, index))
    out[start : start + len(index)] = cleaned.T


def apply(
    rows: Array,
    finite: bool,
    conversion: Conversion,
    cleaning: Cleaning,
    function: Callable[[Array], Any],
    index: NDArray[np.intp],
) -> Any:
    """What the user's function makes of one region's (n_timepoints, n_voxels) array."""
    signals = signals_of(rows, finite, conversion, index)
    return function(cleaning.apply(signals) if cleaning.needed else signals)


def attempt(function: Callable[[Any], Any], item: Any) -> Any:
    """What the user's function makes of ``item``, or the exception that it raises."""
    try:
        return function(item)
    except Exception as error:
        return error
