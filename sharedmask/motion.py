"""A frame resampled by a motion affine.

Covers: the spline interpolation on the frame's own grid. Does not cover: which frames are transformed
and where the result is kept (``films``), estimating motion.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import ParameterError

Array = NDArray[Any]


def checked_affine(affine: Any) -> NDArray[np.float64]:
    """(4, 4), finite and invertible, or a ParameterError that says what is wrong."""
    matrix = np.array(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ParameterError(f"a motion affine is a finite (4, 4) matrix, not one of shape {matrix.shape}")
    if not np.array_equal(matrix[3], (0, 0, 0, 1)) or np.linalg.det(matrix[:3, :3]) == 0:
        raise ParameterError(f"the motion affine {matrix.tolist()} is no invertible affine")
    return matrix


def resample(frame: Array, grid: Array, affine: Array, order: int, dtype: np.dtype[Any]) -> Array:
    """The frame as it would be, had the head not moved.

    Parameters
    ----------
    frame : ndarray, (X, Y, Z)
    grid : ndarray, (4, 4)
        Voxel indices to millimetres, of the frame and of the result.
    affine : ndarray, (4, 4)
        From a place in the result to its place in ``frame``, both in millimetres.
    order : int, 0 to 5
        Of the spline.
    dtype : dtype
        Of the result; values are rounded to integers and clipped to what it holds. 0 outside.
    """
    from scipy.ndimage import affine_transform

    matrix = np.linalg.inv(grid) @ affine @ grid
    values = np.asarray(frame)
    if dtype.kind == "f":
        return np.asarray(affine_transform(values, matrix, output=dtype, order=order))
    limits = np.iinfo(dtype)
    smooth = affine_transform(values, matrix, output=np.float64, order=order)
    return np.asarray(np.clip(np.rint(smooth), limits.min, limits.max).astype(dtype))
