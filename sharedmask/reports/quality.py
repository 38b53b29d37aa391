"""Quality: what a run is like before anything is taken out of it.

Covers: motion, DVARS, tSNR, the global signal, which volumes are kept, from some voxels of the brain and the
table of confounds. Does not cover: pictures of them (``figures``), coverage (``regions``), where they are
written (``study``).
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path

import numpy as np

from sharedmask.compute.confounds import named_columns
from sharedmask.errors import SharedMaskError
from sharedmask.records import dataclass
from sharedmask.typing import Array, NDArray, Numbers

N_PROBES = 4000
"""Voxels that stand for the brain."""
FD_THRESHOLD = 0.5
DESCRIBED = {
    name: {"Description": said}
    for name, said in {
        "mean_fd": "Mean framewise displacement, mm",
        "max_fd": "Largest framewise displacement, mm",
        "fd_above_0.5mm": "Volumes whose framewise displacement is above 0.5 mm",
        "mean_std_dvars": "Mean standardised DVARS",
        "tsnr": "Median over voxels of mean by standard deviation over time",
        "global_signal": "Mean over the brain and over time",
        "global_signal_sd": "Standard deviation over time of the mean over the brain",
        "n_volumes": "Volumes of the run",
        "n_kept": "Volumes that signals have",
        "median_coverage": "Median over regions of the share of their voxels inside the brain mask",
        "n_regions": "Regions of all atlases",
        "n_left_out": "Regions without signals",
    }.items()
}
"""Of the columns of a table of runs: their fields in its sidecar."""
_COLUMNS = ("framewise_displacement", "std_dvars")


def probes_of(brain: Numbers) -> Numbers:
    """Numbers of the voxels that stand for ``brain``, evenly spread over it."""
    places = np.linspace(0, len(brain) - 1, min(N_PROBES, len(brain))).round().astype(np.intp)
    return brain[places]


@dataclass(frozen=True)
class Quality:
    """A run's quality.

    Examples
    --------
    >>> values = np.random.default_rng(0).normal(100, 2, (50, 400))
    >>> quality = Quality(values, np.ones(50, bool))
    >>> round(quality.tsnr), round(float(np.nanmean(quality.std_dvars)), 1)
    (51, 1.0)
    """

    values: Array
    """(n_timepoints, n_probes), of voxels of the brain, as they are in the image."""
    kept: NDArray[np.bool_]
    """(n_timepoints,): the volumes that signals have."""
    fd: Array | None = None
    """Framewise displacement in mm; NaN where it is not known, as of the first volume."""
    given_dvars: Array | None = field(default=None, repr=False)
    """Standardised DVARS, of a table; else it is computed from ``values``."""

    @classmethod
    def of(cls, values: Array, kept: NDArray[np.bool_], confounds: Path | None) -> "Quality":
        """With what the run's table of confounds has; one that cannot be read has nothing.

        What is not finite is NaN.
        """
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            values = values if finite.all() else np.where(finite, values, np.nan)
        found: dict[str, Array] = {}
        if confounds is not None:
            with contextlib.suppress(SharedMaskError, OSError):
                names, table = named_columns(confounds)
                if len(table) == len(values):
                    found = dict(zip(names, table.T, strict=True))
        return cls(values, kept, *map(found.get, _COLUMNS))

    @property
    def std_dvars(self) -> Array:
        """How much the brain changes from one volume to the next, 1 if by chance alone; (n_timepoints,)."""
        return dvars(self.values) if self.given_dvars is None else self.given_dvars

    @property
    def tsnr(self) -> float:
        """The median over voxels of mean by standard deviation over time; NaN if nothing changes."""
        return _Series.of(self.values).tsnr

    @property
    def global_signal(self) -> Array:
        """The mean over the brain; (n_timepoints,)."""
        return np.asarray(self.values.mean(axis=1, dtype=np.float64))

    def measures(self) -> dict[str, float]:
        """What a table of runs shows; NaN for what is not known."""
        fd = np.full(len(self.values), np.nan) if self.fd is None else self.fd
        known = fd[np.isfinite(fd)]
        series, level = _Series.of(self.values), self.global_signal
        changes = series.dvars if self.given_dvars is None else self.given_dvars
        return {
            "mean_fd": _mean(known),
            "max_fd": float(known.max()) if len(known) else np.nan,
            "fd_above_0.5mm": float((known > FD_THRESHOLD).sum()) if len(known) else np.nan,
            "mean_std_dvars": _mean(changes[np.isfinite(changes)]),
            "tsnr": series.tsnr,
            "global_signal": _mean(level),
            "global_signal_sd": float(level.std()),
            "n_volumes": float(len(self.kept)),
            "n_kept": float(self.kept.sum()),
        }


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else np.nan


def dvars(values: Array) -> NDArray[np.float64]:
    """Standardised DVARS of (n_timepoints, n_voxels) values as fMRIPrep has it (Nichols 2017); first NaN."""
    return _Series.of(values).dvars


@dataclass(frozen=True)
class _Series:
    """Values of voxels, and what several measures are made of."""

    values: Array
    true: NDArray[np.float64]
    mean: NDArray[np.float64]
    centred: NDArray[np.float64]
    squares: NDArray[np.float64]
    """Sums over time of the squares of those."""

    @classmethod
    def of(cls, values: Array) -> "_Series":
        true = np.asarray(values, np.float64)
        mean = true.mean(axis=0)
        centred = true - mean
        return cls(values, true, mean, centred, (centred**2).sum(axis=0))

    @property
    def tsnr(self) -> float:
        spread = np.sqrt(self.squares / len(self.values))
        changing = spread > 0
        ratios = self.mean[changing] / spread[changing]
        return float(np.median(ratios)) if len(ratios) else np.nan

    @property
    def dvars(self) -> NDArray[np.float64]:
        result = np.full(len(self.values), np.nan)
        if len(self.values) < 3:
            return result
        # Quartiles as values that are in it: sorted whole, in less than half the time of numpy.percentile,
        # and as they are in the image, which sorts integers faster still.
        ordered, last = np.sort(self.values, axis=0), len(self.values) - 1  # NaN goes last
        low, high = (ordered[place].astype(np.float64) for place in (last // 4, 3 * last // 4))
        spread = np.where(np.isnan(ordered[last]), np.nan, (high - low) / 1.349)
        if not (changing := spread > 0).all():
            return _Series.of(self.values[:, changing]).dvars if changing.any() else result
        room = self.centred[1:] * self.centred[:-1]
        expected = np.sqrt(2 * (1 - room.sum(axis=0) / self.squares)) * spread
        np.subtract(self.true[1:], self.true[:-1], out=room)
        room *= room
        result[1:] = np.sqrt(room.mean(axis=1)) / expected.mean()
        return result


def kept_of(n_timepoints: int, kept: Array | None) -> NDArray[np.bool_]:
    """Which volumes are kept, by their numbers; all, if none are given."""
    there = np.full(n_timepoints, kept is None)
    if kept is not None:
        there[kept] = True
    return there


def as_texts(measures: Mapping[str, float]) -> dict[str, str]:
    """For a table: four digits, whole numbers as such, ``n/a`` for what is not finite."""
    return {name: _text(value) for name, value in measures.items()}


def _text(value: float) -> str:
    if not math.isfinite(value):
        return "n/a"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"
