"""Kernels: array functions on frames, of which one is held at a time.

Covers: resampling a frame, the sum of a selection, least squares. Does not cover: walking frames
(``sequence``), where they live (``store``).

Sums are in float64 and in the order of the frames, so that the numbers depend on nothing else.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.typing import Array, NDArray


def checked_affine(affine: Any) -> NDArray[np.float64]:
    """(4, 4), finite and invertible, or a ParameterError that says what is wrong."""
    matrix = np.array(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ParameterError(f"a motion affine is a finite (4, 4) matrix, not one of shape {matrix.shape}")
    if not np.array_equal(matrix[3], (0, 0, 0, 1)) or np.linalg.det(matrix[:3, :3]) == 0:
        raise ParameterError(f"the motion affine {matrix.tolist()} is no invertible affine")
    return matrix


def resample(frame: Array, grid: Array, affine: Array, order: int, dtype: np.dtype[Any]) -> Array:
    """The frame as it would be, had the head not moved, by a spline of this order; 0 outside.

    ``grid`` leads from voxel indices of both to millimetres, ``affine`` from a place in the result to its
    place in ``frame``, both in millimetres. To integers values are rounded, and clipped to what they hold.
    """
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(grid) @ affine @ grid
    values = np.asarray(frame)
    if dtype.kind == "f":
        return np.asarray(affine_transform(values, matrix, output=dtype, order=order))
    limits = np.iinfo(dtype)
    smooth = affine_transform(values, matrix, output=np.float64, order=order)
    return np.asarray(np.clip(np.rint(smooth), limits.min, limits.max).astype(dtype))


Values = NDArray[np.float64]


def total(frames: Iterable[Array], shape: tuple[int, int, int]) -> Values:
    """The sum of all frames, (X, Y, Z)."""
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
        needed = f"a design of {n_frames} frames is a finite ({n_frames}, k) array"
        raise ParameterError(f"{needed}, not {values.shape}")
    return values
