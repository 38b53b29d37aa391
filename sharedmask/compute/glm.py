"""General linear models of voxels' series: estimates in blocks of rows, and what contrasts say.

Covers: ordinary least squares and AR(1) as nilearn has them, least squares separate for
single trials, contrasts. Does not cover: where rows come from (``rows``), designs as tables
(``confounds``), images of results (``sharedmask.image.glm``).

A block is one product, so that nothing but it and the results is held::

    rows of a block  (n, t)  ──> estimates (n, p) ──> residuals ──> AR(1): voxels of one coefficient together
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np

from sharedmask.compute.kernels import gather
from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.sources.values import Conversion
from sharedmask.system.process import cached_property
from sharedmask.typing import Array, NDArray

Floats = NDArray[np.float64]

_BINS = 100  # of AR(1) coefficients, as in nilearn: those of a bin have one model
_BLOCK_BYTES = 4 * 2**20
_BLOCK_COPIES = 6  # of a block's float64 values at the peak
_TINY = 1e-50  # as nilearn's: the least variance that is divided by
_ROUNDING = 1e-12  # of a number, and less: what is left of it where nothing should be
_TOLD_APART = 1e-8  # rows of a contrast whose estimates differ by less of their size are one


@dataclass(frozen=True)
class Model:
    """A design whitened by an AR(1) coefficient; 0 is ordinary least squares."""

    design: Floats
    rho: float = 0.0

    @cached_property
    def whitened(self) -> Floats:
        return whiten(self.design.T, self.rho).T

    @cached_property
    def estimator(self) -> Floats:
        """(n_regressors, n_timepoints): its product with a whitened series are the estimates."""
        return np.asarray(np.linalg.pinv(self.whitened, rcond=_rcond(self.whitened)), np.float64)

    @cached_property
    def covariance(self) -> Floats:
        """(n_regressors, n_regressors), of the estimates, for noise of variance 1."""
        return np.asarray(self.estimator @ self.estimator.T)

    def fit(self, series: Floats) -> tuple[Floats, Floats]:
        """Estimates (n, n_regressors), and residuals of the whitened series (n, n_timepoints).

        A constant series that the design explains has no residuals, where rounding leaves some that look like
        any others.
        """
        white = whiten(series, self.rho)
        estimates = white @ self.estimator.T
        white -= estimates @ self.whitened.T
        steady = constant(series)
        bound = _ROUNDING * np.abs(series[steady, :1])
        exact = (np.abs(white[steady]) <= bound).all(axis=1)
        steady, bound = steady[exact], bound[exact]
        white[steady] = 0
        estimates[steady] *= np.abs(estimates[steady]) > bound * np.linalg.norm(self.estimator, axis=1)
        return estimates, white

    def rank(self, contrast: Floats) -> int:
        """How many things a contrast's rows say of what this design estimates."""
        size = np.abs(contrast) @ np.linalg.norm(self.estimator, axis=1)
        told = contrast @ self.estimator / np.where(size > 0, size, 1)[:, None]
        return int(np.linalg.matrix_rank(told, tol=_TOLD_APART))


def constant(series: Floats) -> NDArray[np.intp]:
    """Which rows have one value."""
    alike = np.flatnonzero(series[:, 0] == series[:, -1])
    return np.asarray(alike[(series[alike] == series[alike, :1]).all(axis=1)])


def whiten(series: Floats, rho: float) -> Floats:
    """(n, n_timepoints) series less ``rho`` times the volume before; a fresh array."""
    white = np.array(series, np.float64)
    if rho:
        white[:, 1:] -= rho * series[:, :-1]
    return white


def _rcond(matrix: Floats) -> float:
    """Relative to the largest singular value: what scipy's ``pinv`` cuts off."""
    return float(max(matrix.shape) * np.finfo(np.float64).eps)


def degrees_of_freedom(design: Floats) -> int:
    """Volumes less the rank of the design, by nilearn's tolerance."""
    rank = np.linalg.matrix_rank(design, np.abs(design).sum() * np.finfo(np.float64).eps)
    return len(design) - int(rank)


def autocorrelation(residuals: Floats, mean: float) -> Floats:
    """(n,) AR(1) coefficients by Yule and Walker, cut to hundredths towards 0; 0 for a constant series."""
    centred, n = residuals - mean, residuals.shape[1]
    at_0 = np.einsum("vt,vt->v", centred, centred) / n
    at_1 = np.einsum("vt,vt->v", centred[:, :-1], centred[:, 1:]) / (n - 1)
    rho = np.divide(at_1, at_0, out=np.zeros_like(at_0), where=at_0 > 0)
    return np.asarray((rho * _BINS).astype(int) / _BINS)


def separate_estimator(design: Floats, trials: Sequence[int]) -> Floats:
    """(n_trials, n_timepoints): each row estimates one trial, with all others as one regressor.

    References
    ----------
    J. A. Mumford et al. (2012). Deconvolving BOLD activation in event-related designs for multivoxel
    pattern classification analyses. NeuroImage 59, 2636-2643.
    """
    rest = np.delete(design, trials, axis=1)
    together = design[:, trials].sum(axis=1)
    rows = []
    for trial in trials:
        own = design[:, trial]
        others = [(together - own)[:, None]] if len(trials) > 1 else []
        rows.append(Model(np.column_stack([own, *others, rest])).estimator[0])
    return np.array(rows)


# --- blocks --------------------------------------------------------------------------------------


def block_rows(n_timepoints: int) -> int:
    """Voxels per block."""
    return max(1, _BLOCK_BYTES // (n_timepoints * 8))


def block_bytes(n_timepoints: int) -> int:
    """What a thread at work takes besides the results."""
    return _BLOCK_COPIES * block_rows(n_timepoints) * n_timepoints * 8


@dataclass(frozen=True)
class Task:
    """What is estimated in each block, and where it goes."""

    design: Floats
    contrasts: Mapping[Any, Floats]
    """Name -> (n, n_regressors)."""
    autoregressive: bool
    in_per_cent: bool
    estimator: Floats | None
    """Of single trials; then nothing else is made."""
    estimates: Array
    """(n_estimates, n_voxels)."""
    effects: Mapping[Any, Array] = field(default_factory=dict)
    """(n, n_voxels)."""
    variances: Mapping[Any, Array] = field(default_factory=dict)
    rho: Array | None = None
    mean: float = 0.0
    """Of all residuals."""
    models: dict[float, Model] = field(default_factory=dict)

    def model(self, rho: float) -> Model:
        return self.models.setdefault(rho, Model(self.design, rho))


def fit_block(
    rows: Array, finite: bool, conversion: Conversion, task: Task, index: NDArray[np.intp], start: int
) -> None:
    """Estimate everything for the voxels ``index``, which are the results' from ``start`` on."""
    series = series_of(rows, finite, conversion, index, task.in_per_cent)
    place = np.arange(start, start + len(index))
    if task.estimator is not None:
        task.estimates[:, place] = task.estimator @ series.T
        return
    estimates, residuals = task.model(0.0).fit(series)
    if not task.autoregressive:
        _keep(task, task.model(0.0), estimates, residuals, place)
        return
    rho = autocorrelation(residuals, task.mean)
    if task.rho is not None:
        task.rho[place] = rho
    for value in np.unique(rho):
        chosen = rho == value
        model = task.model(float(value))
        _keep(task, model, *model.fit(series[chosen]), place[chosen])


def series_of(
    rows: Array, finite: bool, conversion: Conversion, index: NDArray[np.intp], in_per_cent: bool = False
) -> Floats:
    """(n, n_timepoints) true values, or their distance from each voxel's mean in per cent of it."""
    taken = np.empty((len(index), rows.shape[1]), conversion.result)
    gather(rows, finite, taken, conversion, index, 0)
    series = taken.astype(np.float64)
    if in_per_cent:
        mean = series.mean(axis=1, keepdims=True)
        series *= 100 / np.where(mean == 0, 1, mean)
        series -= 100
        series[constant(series)] = 0  # and not what rounding left
    return series


def _keep(task: Task, model: Model, estimates: Floats, residuals: Floats, place: NDArray[np.intp]) -> None:
    n_timepoints, n_regressors = model.design.shape
    dispersion = np.einsum("vt,vt->v", residuals, residuals) / (n_timepoints - n_regressors)
    task.estimates[:, place] = estimates.T
    for name, contrast in task.contrasts.items():
        effect, cov = contrast @ estimates.T, contrast @ model.covariance @ contrast.T
        exact = dispersion == 0
        size = np.abs(contrast) @ np.abs(estimates[exact].T)
        effect[:, exact] *= np.abs(effect[:, exact]) > _ROUNDING * size
        if len(contrast) > 1:  # whitened, so that the sum of its squares is that of an F
            effect, cov = _inverse_root(cov) @ effect, np.ones((1, 1))
        task.effects[name][:, place] = effect
        task.variances[name][place] = cov[0, 0] * dispersion


def _inverse_root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors / np.sqrt(values) @ vectors.T)


# --- contrasts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """What a contrast says of each voxel; t for a vector, F for a matrix."""

    effect: Array = field(repr=False)
    """(n_voxels,); of an F contrast (n, n_voxels), whitened."""
    variance: Array = field(repr=False)
    """(n_voxels,), of the effect; of an F contrast that of the noise."""
    degrees_of_freedom: int

    @property
    def dimension(self) -> int:
        return 1 if self.effect.ndim == 1 else len(self.effect)

    @property
    def stat(self) -> Floats:
        """(n_voxels,) t or F."""
        variance = np.maximum(self.variance.astype(np.float64), _TINY)
        if self.dimension == 1:
            return np.asarray(self.effect / np.sqrt(variance))
        return np.asarray(np.sum(self.effect.astype(np.float64) ** 2, axis=0) / self.dimension / variance)

    @property
    def p_value(self) -> Floats:
        """(n_voxels,), of a value as large; of t one-sided."""
        return self._tails(self.stat)[0]

    @property
    def z_score(self) -> Floats:
        """(n_voxels,), with the p value of the statistic."""
        from scipy.special import ndtri

        above, below = (np.clip(p, 1e-300, 1 - 1e-16) for p in self._tails(self.stat))
        z = -ndtri(above)
        return np.asarray(np.where(z < 0, ndtri(below), z))

    def _tails(self, stat: Floats) -> tuple[Floats, Floats]:
        from scipy.special import fdtr, fdtrc, stdtr

        if self.dimension == 1:
            return stdtr(self.degrees_of_freedom, -stat), stdtr(self.degrees_of_freedom, stat)
        shape = self.dimension, self.degrees_of_freedom
        return fdtrc(*shape, stat), fdtr(*shape, stat)


def place_of(what: str, name: Any, names: Sequence[Any]) -> int:
    """Which regressor has a name.

    Raises ParameterError.
    """
    found = [place for place, one in enumerate(names) if one == name]
    if len(found) != 1:
        said = f"the name of {len(found)} regressors" if found else "no regressor"
        raise ParameterError(f"{what} {name!r} is {said}; there are {', '.join(map(str, names))}")
    return found[0]


def contrast_matrix(given: Any, names: Sequence[Any]) -> Floats:
    """A contrast, (n, n_regressors), of a regressor's name, a vector or a matrix.

    Raises ParameterError.

    Examples
    --------
    >>> contrast_matrix("b", ["a", "b"]).tolist()
    [[0.0, 1.0]]
    """
    if isinstance(given, str):
        return np.eye(len(names))[[place_of("contrast", given, names)]]
    matrix = np.atleast_2d(np.asarray(given, np.float64))
    if matrix.ndim != 2 or matrix.shape[1] > len(names) or not np.isfinite(matrix).all():
        raise ParameterError(f"a contrast of shape {matrix.shape} for {len(names)} regressors, or not finite")
    return np.pad(matrix, ((0, 0), (0, len(names) - matrix.shape[1])))
