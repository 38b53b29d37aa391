"""Connectivity: matrices of regions' signals, and maps of seeds.

Covers: nilearn's measures, regions without signals, Fisher's z, the correlation of voxels with seeds. Does
not cover: how signals come to be (``signals``), files (``tables`` of ``study``).
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.sources.names import camel
from sharedmask.typing import Array, NDArray

KINDS = ("correlation", "partial correlation", "covariance", "precision")
"""nilearn's that a single run has."""
CONNECTIVITY_MODULES = ("nilearn.connectome",)
"""What workers that make matrices import, once for all."""
_BOUNDED = ("correlation", "partial correlation")
_ROUNDING = 1e-12  # of a mean: what is left of a constant series beside it


def checked_kinds(kinds: str | Iterable[str] | None) -> tuple[str, ...]:
    """The measures by nilearn's names, of None none; ``-`` and ``_`` may stand for the blank.

    Raises ParameterError: naming those that there are.

    Examples
    --------
    >>> checked_kinds("partial-correlation")
    ('partial correlation',)
    """
    asked = [kinds] if isinstance(kinds, str) else list(kinds or ())
    found = [str(kind).replace("-", " ").replace("_", " ") for kind in asked]
    for kind in found:
        if kind == "tangent":
            raise ParameterError(
                "connectivity 'tangent' is of a group, whose level writes it: it has no matrix of one run"
            )
        if kind not in KINDS or found.count(kind) > 1:
            twice = "is asked for twice" if kind in KINDS else f"is none of {', '.join(KINDS)}"
            raise ParameterError(f"connectivity {kind!r} {twice}")
    return tuple(found)


def check_matrices(kinds: Iterable[str], fisher_z: bool, tables: bool = True) -> tuple[str, ...]:
    """The measures, which can be had of tables and, for Fisher's z, are correlations.

    Raises ParameterError.
    """
    found = checked_kinds(kinds)
    if found and not tables:
        raise ParameterError("connectivity is of regions' values, not of the series of all voxels")
    if fisher_z and (unbounded := [kind for kind in found or ("none",) if kind not in _BOUNDED]):
        raise ParameterError(f"fisher_z is of correlations, not of {unbounded[0]}")
    return found


def measure(kind: str, fisher_z: bool) -> str:
    """A measure in the name of a file: ``partialCorrelation``, ``correlationFisherZ``."""
    return camel("_".join([*kind.split(), *(["fisher", "z"] if fisher_z else [])]))


def connectivity(signals: Array, kind: str, *, fisher_z: bool = False) -> NDArray[np.float64]:
    """The matrix of ``signals`` by nilearn's ``ConnectivityMeasure``.

    ``signals``, (n_timepoints, n_regions): regions of NaN, which have no signal, have none in the matrix
    either.
    ``kind``: one of :data:`KINDS`.
    ``fisher_z``: the inverse hyperbolic tangent of correlations; the diagonal, where it is infinite, is NaN.
    """
    (kind,) = check_matrices([kind], fisher_z)
    if np.ndim(signals) != 2 or len(signals) < 2:
        raise ParameterError(f"connectivity needs several volumes, not signals of shape {np.shape(signals)}")
    there = np.flatnonzero(~np.isnan(signals).all(axis=0))
    matrix = np.full((signals.shape[1],) * 2, np.nan)
    if len(there):
        from nilearn.connectome import ConnectivityMeasure

        nilearns = ConnectivityMeasure(kind=kind)
        matrix[np.ix_(there, there)] = nilearns.fit_transform([np.ascontiguousarray(signals[:, there])])[0]
    return fishers_z(matrix) if fisher_z else matrix


@dataclass(frozen=True)
class Related:
    """Signals with matrices by each measure, in a dict."""

    kinds: tuple[str, ...]
    fisher_z: bool

    def __call__(self, signals: Any) -> dict[str, Any]:
        """``"signals"`` are the first; of several statistics a dict of each."""
        if isinstance(signals, dict):
            return {name: self(values) for name, values in signals.items()}
        made = {kind: connectivity(signals, kind, fisher_z=self.fisher_z) for kind in self.kinds}
        return {"signals": signals, **made}

    def variant(self, given: str | Callable[[Any], str], key: Any) -> str:
        """What an image's outputs depend on, with these."""
        return f"{given(key) if callable(given) else given} {(self.kinds, self.fisher_z)}"


def fishers_z(correlations: Array) -> NDArray[np.float64]:
    """Of a matrix of correlations; NaN on the diagonal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        transformed = np.arctanh(correlations)
    np.fill_diagonal(transformed, np.nan)
    return np.asarray(transformed)


def standardized(signals: Array) -> NDArray[np.float64]:
    """Each column with mean 0 and length 1; 0 where it is constant."""
    values = np.asarray(signals, np.float64)
    mean = values.mean(axis=0)
    centred = values - mean
    length = np.linalg.norm(centred, axis=0)
    changing = length > _ROUNDING * np.sqrt(len(values)) * np.abs(mean)
    return np.asarray(np.divide(centred, length, out=np.zeros_like(centred), where=changing))


@dataclass(frozen=True)
class SeedCorrelation:
    """The correlation of voxels with seeds, for workers: a function of (n_timepoints, n_voxels) arrays.

    ``seeds``, (n_timepoints, n_seeds): as :func:`standardized` gives them.
    """

    seeds: NDArray[np.float64]
    fisher_z: bool = False

    def __call__(self, signals: Array) -> Array:
        """(n_voxels, n_seeds)."""
        found = np.clip(standardized(signals).T @ self.seeds, -1.0, 1.0)
        with np.errstate(divide="ignore"):
            return np.asarray(np.arctanh(found) if self.fisher_z else found, np.float32)
