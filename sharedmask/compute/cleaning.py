"""Cleaning: what :func:`nilearn.signal.clean` is asked for.

Covers: the parameters by nilearn's names, and applying them, to some of a mask's signals at a time. Does not
cover: checking them (``request``).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sharedmask.records import dataclass
from sharedmask.typing import Array, NDArray

CLEANING_MODULES = ("nilearn.signal",)
"""What workers that clean import, once for all."""
COLUMNS = 480
"""Signals that are cleaned at a time: whole cache lines, and not 512, which are 2 KiB apart and so have the
same place in a cache; nilearn takes trends out of 500 and more in ten parts."""
_TAKEN = 0.1  # of the mean, in nilearn: a filter that leaves less took it
_CLEANING = ("standardize", "detrend", "confounds", "sample_mask", "low_pass", "high_pass")


def is_cleaning(asked: Mapping[str, Any]) -> bool:
    """Whether parameters of a call ask for any."""
    return any(asked.get(name) is not None and asked[name] is not False for name in _CLEANING)


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
    def filters(self) -> bool:
        return self.low_pass is not None or self.high_pass is not None

    @property
    def needed(self) -> bool:
        series = self.confounds is not None or self.sample_mask is not None
        return self.standardize is not None or self.detrend or self.filters or series

    @property
    def looks_at_all(self) -> bool:
        """Whether what becomes of a signal hangs on those beside it.

        Filtered signals are in per cent of their own mean, or of that which they had before where the filter
        took nearly all of it: by the means over all of them.
        """
        return self.standardize == "psc" and self.filters

    def begin(self, signals: Array) -> tuple[Array, Array]:
        """All but what looks at all of a mask's signals; and their means before the filter."""
        before = self._means_before(signals)
        return Cleaning.apply(replace(self, standardize=None), signals), before

    def _means_before(self, signals: Array) -> Array:
        if (kept := self.sample_mask) is None:
            return np.asarray(signals.mean(axis=0))
        from scipy.interpolate import CubicSpline

        assert self.t_r is not None  # a filter's
        filled, times = signals.copy(), np.arange(len(signals)) * self.t_r
        # nilearn counts the volumes that it fills from the end: those that both counts leave out stay.
        filled[~kept] = CubicSpline(times[kept], signals[kept])(times)[~kept]
        return np.asarray(filled.mean(axis=0))

    def end(self, rows: Array, before: Array) -> None:
        """Finish all of a mask's rows, (n_columns, n_timepoints), which were begun, in place."""
        means = np.concatenate([part.mean(axis=1) for part in _parts(rows)])
        taken = is_taken(means, before)
        for part, level in zip(_parts(rows), _parts(before), strict=True):
            signals = np.ascontiguousarray(part.T)  # over which nilearn's means are taken row by row
            part[...] = Cleaning(self.standardize).apply(signals + level * taken).T

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


@dataclass(frozen=True)
class Levels(Cleaning):
    """Of signals that are begun their means, and those before the filter: (2, n_columns)."""

    def apply(self, signals: Array) -> Array:
        """See :class:`Levels`."""
        begun, before = self.begin(signals)
        return np.stack([begun.mean(axis=0), before])


@dataclass(frozen=True)
class Decided(Cleaning):
    """For some of a mask's signals, all of which have decided: by their :class:`Levels`."""

    taken: bool = False

    def apply(self, signals: Array) -> Array:
        """Clean ``signals`` of shape (n_timepoints, n_columns)."""
        begun, before = self.begin(signals)
        return Cleaning(self.standardize).apply(begun + before * self.taken)


def is_taken(means: Array, before: Array) -> bool:
    """Whether a filter took nearly all of the means of a mask's signals."""
    return bool(np.abs(means).mean() / np.abs(before).mean() < _TAKEN)


def _parts(rows: Array) -> list[Array]:
    return [rows[start : start + COLUMNS] for start in range(0, len(rows), COLUMNS)]
