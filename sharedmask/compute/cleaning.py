"""Cleaning: what :func:`nilearn.signal.clean` is asked for.

Covers: the parameters by nilearn's names, and applying them. Does not cover: checking them (``request``).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sharedmask.records import dataclass
from sharedmask.typing import Array, NDArray

CLEANING_MODULES = ("nilearn.signal",)
"""What workers that clean import, once for all."""
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
