"""Pure array functions that workers run: gather, convert, reduce, clean.

Covers: what happens to the rows of an image (one row per voxel, each the voxel's time series).
Does not cover: where rows live (``segments``), who runs a kernel (``pool``), which voxels make a
region (``regions``). No files and no processes here; nilearn is imported only to clean.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import ParameterError

Array = NDArray[Any]
NanPolicy = Literal["zero", "propagate", "raise", "omit"]

# Work goes through pieces that stay in a core's cache: whatever follows the gather then costs
# arithmetic only, not another trip to memory.
_PIECE_BYTES = 256 * 1024
# A median needs all rows of a volume at once, picked out of every row: few, larger pieces.
_MEDIAN_BYTES = 4 * 2**20


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
    source = _Pieces(rows, index, conversion)
    with np.errstate(invalid="ignore"):
        out[column] = STRATEGIES[strategy](source)


@dataclass(frozen=True)
class _Pieces:
    """The rows of one region, as float64, piece by piece."""

    rows: Array
    index: NDArray[np.intp]
    conversion: Conversion

    def __iter__(self) -> Iterator[Array]:
        n_timepoints = self.rows.shape[1]
        for piece in pieces(len(self.index), n_timepoints * 8):
            stored = self.rows[self.index[piece]]
            values = np.empty(stored.shape)
            convert(stored, values, self.conversion)
            yield values

    @property
    def omits(self) -> bool:
        return self.conversion.nan_policy == "omit"

    @property
    def n_timepoints(self) -> int:
        return int(self.rows.shape[1])


def _accumulate(parts: Iterator[Array], n_timepoints: int) -> Array:
    """Sum over rows, one row after the other.

    The order is that of ``scipy.ndimage``'s reductions, hence nilearn's bits: the sum so far
    goes in as the first row of the next piece, so that pieces leave no trace.
    """
    total: Array = np.zeros((1, n_timepoints))
    for values in parts:
        total = np.add.reduce(np.concatenate([total, values]), axis=0, keepdims=True)
    return np.asarray(total[0])


def _sum(source: _Pieces) -> Array:
    if source.omits:
        return _accumulate((np.nan_to_num(v, nan=0.0) for v in source), source.n_timepoints)
    return _accumulate(iter(source), source.n_timepoints)


def _count(source: _Pieces) -> Array | float:
    if source.omits:
        return _accumulate(((~np.isnan(v)).astype(float) for v in source), source.n_timepoints)
    return float(len(source.index))


def _mean(source: _Pieces) -> Array:
    return np.asarray(_sum(source) / _count(source))


def _variance(source: _Pieces) -> Array:
    mean = _mean(source)
    squares = ((v - mean) ** 2 for v in source)
    if source.omits:
        squares = (np.nan_to_num(s, nan=0.0) for s in squares)
    return np.asarray(_accumulate(squares, source.n_timepoints) / _count(source))


def _standard_deviation(source: _Pieces) -> Array:
    return np.asarray(np.sqrt(_variance(source)))


def _extreme(ufunc: np.ufunc, omitting: np.ufunc) -> Callable[[_Pieces], Array]:
    def reduction(source: _Pieces) -> Array:
        chosen = omitting if source.omits else ufunc
        best: Array | None = None
        for values in source:
            here = chosen.reduce(values, axis=0)
            best = here if best is None else chosen(best, here)
        assert best is not None
        return best

    return reduction


def _median(source: _Pieces) -> Array:
    middle = _nanmedian if source.omits else np.median
    index, conversion = source.index, source.conversion
    result = np.empty(source.n_timepoints)
    for span in pieces(source.n_timepoints, len(index) * 8, _MEDIAN_BYTES):
        stored = source.rows[index, span]
        values = np.empty(stored.shape)
        convert(stored, values, conversion)
        result[span] = middle(values, axis=0)
    return result


def _nanmedian(values: Array, axis: int) -> Array:
    empty = np.isnan(values).all(axis=axis)
    filled = np.where(empty, 0.0, values)  # numpy warns of columns without any value
    return np.where(empty, np.nan, np.nanmedian(filled, axis=axis))


def _pc1(source: _Pieces) -> Array:
    """First principal time course, scaled as SPM's first eigenvariate.

    Voxel means are removed; the sign makes the voxels' weights sum to a positive number; the
    scale is the first singular value over the square root of the number of voxels.
    """
    if source.omits:
        raise ParameterError("strategy='pc1' needs every value: nan_policy='omit' does not apply")
    centred = (values - values.mean(axis=1, keepdims=True) for values in source)
    n_voxels = len(source.index)
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


STRATEGIES: dict[str, Callable[[_Pieces], Array]] = {
    "mean": _mean,
    "median": _median,
    "sum": _sum,
    "minimum": _extreme(np.minimum, np.fmin),
    "maximum": _extreme(np.maximum, np.fmax),
    "variance": _variance,
    "standard_deviation": _standard_deviation,
    "pc1": _pc1,
}


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
