"""Streaming: sums over frames, holding one of them.

Covers: the sum of a selection, least squares. Does not cover: walking frames (``frames``), where they
live (``films``).

Sums are in float64 and in the order of the frames, so that the numbers depend on nothing else.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import ParameterError

Array = NDArray[Any]
Values = NDArray[np.float64]


def total(frames: Iterable[Array], shape: tuple[int, int, int]) -> Values:
    """The sum of ``frames``, (X, Y, Z)."""
    found = np.zeros(shape, np.float64, order="F")
    for frame in frames:
        found += frame
    return found


def is_exact(dtype: np.dtype[Any]) -> bool:
    """Whether sums of such values have no rounding, in whatever order: up to two million frames."""
    return dtype.kind in "iu" and dtype.itemsize <= 4


def coefficients(frames: Iterator[Array], n_frames: int, shape: tuple[int, int, int], design: Any) -> Values:
    """The least-squares coefficients of ``design``, (N, k), in each voxel: (X, Y, Z, k)."""
    weights = np.linalg.pinv(_checked_design(design, n_frames))
    found = np.zeros((*shape, len(weights)), np.float64, order="F")
    for number, frame in enumerate(frames):
        for column, weight in enumerate(weights[:, number]):
            found[..., column] += weight * frame
    return found


def _checked_design(design: Any, n_frames: int) -> Values:
    values = np.asarray(design, np.float64)
    if values.ndim != 2 or len(values) != n_frames or not np.isfinite(values).all():
        raise ParameterError(
            f"a design of {n_frames} frames is a finite ({n_frames}, k) array, not {values.shape}"
        )
    return values
