"""Strategies: what the rows of one region come to, one value per volume.

Covers: the arithmetic, and which strategies are made of what. Does not cover: where rows come from and
several regions at a time (``reduction``), which voxels make a region (``regions``).
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.typing import Array


class Region(Protocol):
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
class Values:
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


def accumulated(parts: Iterator[Array]) -> Array:
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


def _sum(source: Region) -> Array:
    return (
        accumulated(np.nan_to_num(v, nan=0.0) for v in source) if source.omits else accumulated(iter(source))
    )


def _count(source: Region) -> Array | float:
    if source.omits:
        return accumulated((~np.isnan(v)).astype(float) for v in source)
    return float(source.n_voxels)


def _mean(source: Region) -> Array:
    return np.asarray(_sum(source) / _count(source))


def _weighted_mean(source: Region) -> Array:
    assert source.weights is not None  # requests without weights are refused
    total: Array | float = float(np.sum(source.weights, dtype=np.float64))
    if source.omits:
        total = accumulated(np.where(np.isnan(v), 0.0, w) for v, w in _weighted(source))
    return np.asarray(
        accumulated(np.nan_to_num(v * w) if source.omits else v * w for v, w in _weighted(source)) / total
    )


def _weighted(source: Region) -> Iterator[tuple[Array, Array]]:
    """Pieces of rows, and a column of their weights."""
    start = 0
    for values in source:
        assert source.weights is not None
        yield values, source.weights[start : start + len(values), None]
        start += len(values)


def _variance(source: Region) -> Array:
    mean = _mean(source)
    squares = (squares_of(v, mean, source.scratch[: len(v)]) for v in source)
    if source.omits:
        squares = (np.nan_to_num(s, nan=0.0) for s in squares)
    return np.asarray(accumulated(squares) / _count(source))


def squares_of(values: Array, mean: Array, out: Array) -> Array:
    return np.square(np.subtract(values, mean, out=out), out=out)


def _standard_deviation(source: Region) -> Array:
    return np.asarray(np.sqrt(_variance(source)))


def _extreme(ufunc: np.ufunc, omitting: np.ufunc) -> Callable[[Region], Array]:
    def reduction(source: Region) -> Array:
        chosen = omitting if source.omits else ufunc
        best: Array | None = None
        for values in source:
            here = chosen.reduce(values, axis=0)
            best = here if best is None else chosen(best, here)
        assert best is not None
        return best

    return reduction


def _median(source: Region) -> Array:
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


def _pc1(source: Region) -> Array:
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


STRATEGIES: dict[str, Callable[[Region], Array]] = {
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
BY_VOLUME = frozenset(STRATEGIES) - {"pc1"}
"""Strategies whose value of a volume needs no other volume."""
