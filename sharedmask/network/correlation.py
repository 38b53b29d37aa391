"""Correlation of seeds with rows, and what many subjects' correlations say: pure array functions.

Covers: standardising rows, the courses of seeds, Fisher's z summed over subjects, t, p and the
false discovery rate, the choice of voxels by their principal component. Does not cover: where rows
come from (``connectome``), which voxels are a seed (``mapper``), who runs a kernel (``pool``).

Rows are float32, one per voxel, centred and of length 1, so that a correlation is a product. What
single precision would blur is done in float64: centring, the courses, correlations near 1, all
sums over subjects.
"""

from collections.abc import Sequence

import numpy as np

from sharedmask.sources.values import pieces
from sharedmask.typing import Array, NDArray

Index = NDArray[np.intp]

Z_CAP = 10.0
"""Fisher's z of a perfect correlation, on every path."""

SPAN_VOXELS = 1024
"""Voxels per product: their sums over subjects stay in a core's cache."""

# Fisher's z magnifies an error of r by 1 / (1 - r**2): above this, r is made again in float64.
_EXACT_ABOVE = 0.75
# Of correlations that differ by less between subjects, the principal component is rounding.
_ROUNDING = 1e-6


# --- rows and seeds ------------------------------------------------------------------------------


def standardise(rows: Array) -> NDArray[np.float32]:
    """Centre each row, (n_timepoints,) float32, and scale it to length 1, in place.

    The lengths before are given: 0 for a constant row, NaN for one that is not finite. Both rows become 0.

    Examples
    --------
    >>> rows = np.array([[1, 2, 3], [5, 5, 5]], "f4")
    >>> (standardise(rows) ** 2).round().tolist(), rows[1].tolist()
    ([2.0, 0.0], [0.0, 0.0, 0.0])
    """
    lengths = np.empty(len(rows), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for piece in pieces(len(rows), rows.shape[1] * rows.itemsize):
            lengths[piece] = _standardise_piece(rows[piece])
    return lengths


def _standardise_piece(rows: Array) -> Array:
    mean = np.add.reduce(rows, axis=1, dtype=np.float64, keepdims=True) / rows.shape[1]
    rounded = mean.astype(np.float32)
    rows -= rounded
    rows -= (mean - rounded).astype(np.float32)  # what rounding left of a large offset
    lengths: Array = np.sqrt(np.einsum("vt,vt->v", rows, rows))
    finite = np.isfinite(lengths)
    rows *= np.divide(1, lengths, out=np.zeros_like(lengths), where=finite & (lengths > 0))[:, None]
    rows[~finite] = 0
    return np.where(finite, lengths, np.float32(np.nan))


def seed_courses(series: Array, lengths: Array, courses: Array, seeds: Sequence[Index], subject: int) -> None:
    """``courses[subject, i]`` = the mean series of the voxels ``seeds[i]``, centred, of length 1.

    A mean that is constant, or not finite, becomes 0: so do its correlations.
    """
    for number, seed in enumerate(seeds):
        courses[subject, number] = _course(series[subject], lengths[subject], seed)


def _course(rows: Array, lengths: Array, seed: Index) -> Array:
    course = np.zeros(rows.shape[1])
    for piece in pieces(len(seed), rows.shape[1] * rows.itemsize):
        voxels = seed[piece]
        course += lengths[voxels] @ rows.take(voxels, axis=0, mode="clip")
    course -= course.mean()
    length = np.sqrt(course @ course)
    return course / length if np.isfinite(length) and length > 0 else np.zeros_like(course)


def seed_correlations(
    series: Array, courses: Array, seeds: Sequence[Index], subject: int
) -> list[NDArray[np.float64]]:
    """For each seed, the correlations of its own voxels with its course in one subject."""
    rows = series[subject]
    return [_exact(course[None], rows[seed])[0] for course, seed in zip(courses[subject], seeds, strict=True)]


def _exact(courses: Array, rows: Array) -> NDArray[np.float64]:
    """(n_seeds, n_rows) correlations in float64, clipped to [-1, 1]; 0 for rows of 0."""
    rows = rows.astype(np.float64)
    lengths = np.sqrt(np.einsum("vt,vt->v", rows, rows))
    lengths[lengths == 0] = 1
    r: NDArray[np.float64] = np.clip(courses @ rows.T / lengths, -1, 1)
    return r


# --- over subjects -------------------------------------------------------------------------------


def accumulate(series: Array, courses: Array, moments: Array, n_before: int, start: int) -> None:
    """Add the subjects of a block to the moments of :data:`SPAN_VOXELS` voxels from ``start`` on.

    Parameters
    ----------
    series : (n_subjects, n_voxels, n_timepoints) float32 array
        Standardised rows.
    courses : (n_subjects, n_seeds, n_timepoints) float64 array
    moments : (2, n_seeds, n_voxels) float64 array
        Mean of z, and the sum of its squared deviations, over the ``n_before`` subjects so far;
        subjects are added one by one, so blocks leave no trace.

    References
    ----------
    B. P. Welford (1962). Note on a method for calculating corrected sums of squares and products.
    Technometrics 4, 419-420.
    """
    span = slice(start, start + SPAN_VOXELS)
    mean, squares = np.array(moments[:, :, span])
    r, z, step = np.empty(mean.shape, np.float32), np.empty_like(mean), np.empty_like(mean)
    with np.errstate(invalid="ignore", divide="ignore"):  # of correlations near 1, made again
        for number, (rows, course) in enumerate(zip(series, courses, strict=False), n_before + 1):
            _fisher_z(course, rows[span], r, z)
            z -= mean
            np.multiply(z, 1 / number, out=step)
            mean += step
            z *= step
            z *= number - 1
            squares += z
    moments[:, :, span] = mean, squares


def _fisher_z(courses: Array, rows: Array, r: Array, z: Array) -> None:
    """Write the correlations into ``r``, and Fisher's z of them, at most :data:`Z_CAP` in size, into ``z``.

    Seeds' ``courses`` and ``z`` are float64, standardised ``rows`` and ``r`` float32.
    """
    np.matmul(courses.astype(np.float32), rows.T, out=r)
    np.arctanh(r, out=z)
    if max(r.max(), -r.min()) > _EXACT_ABOVE:
        near = np.flatnonzero(np.abs(r).max(axis=0) > _EXACT_ABOVE)
        z[:, near] = np.clip(np.arctanh(_exact(courses, rows[near])), -Z_CAP, Z_CAP)


def t_values(mean: Array, squares: Array, n_subjects: int) -> NDArray[np.float64]:
    """One-sample t of z; 0 where the standard error is 0."""
    error = np.sqrt(squares / (n_subjects - 1) / n_subjects)
    return np.divide(mean, error, out=np.zeros_like(error), where=error > 0)


def p_values(t: Array, n_subjects: int) -> NDArray[np.float64]:
    """Two-sided, with ``n_subjects - 1`` degrees of freedom.

    Examples
    --------
    >>> p_values(np.array([0.0, 12.706]), 2).round(4).tolist()
    [1.0, 0.05]
    """
    from scipy.special import stdtr

    p: NDArray[np.float64] = 2 * stdtr(n_subjects - 1, -np.abs(t))
    return p


def benjamini_hochberg(p: Array) -> NDArray[np.float64]:
    """p adjusted for the false discovery rate over all values.

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.04, 0.01, 0.5])).round(4).tolist()
    [0.06, 0.03, 0.5]
    """
    order = np.argsort(p)[::-1]
    adjusted = np.empty(len(p))
    ranks = np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum.accumulate(p[order] * len(p) / ranks)
    return np.clip(adjusted, 0, 1)


# --- the voxels that a seed keeps ----------------------------------------------------------------


def kept_voxels(correlations: Array, percentile: float) -> NDArray[np.bool_]:
    """Which voxels load on the first principal component over subjects as strongly as asked.

    ``correlations``, (n_subjects, n_voxels), are those of a seed's voxels with its mean; what is below the
    ``percentile`` of the sizes of the loadings is left out.

    Examples
    --------
    >>> kept_voxels(np.array([[0.1, 0.9, 0.5], [0.1, 0.1, 0.4], [0.1, 0.5, 0.6]]), 20).tolist()
    [False, True, True]
    """
    loadings = np.abs(_first_loadings(correlations))
    kept: NDArray[np.bool_] = loadings >= np.percentile(loadings, percentile)
    return kept


def _first_loadings(correlations: Array) -> Array:
    """Of sklearn's ``PCA(1)``, up to the sign; all 0 where subjects do not differ."""
    centred = correlations - correlations.mean(axis=0)
    if np.sqrt(np.mean(centred**2)) < _ROUNDING:
        return np.zeros(centred.shape[1])
    if centred.shape[1] <= centred.shape[0]:
        return np.asarray(np.linalg.eigh(centred.T @ centred)[1][:, -1])
    loadings = np.linalg.eigh(centred @ centred.T)[1][:, -1] @ centred
    return np.asarray(loadings / np.linalg.norm(loadings))
