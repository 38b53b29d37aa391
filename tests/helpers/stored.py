"""Rows of stored values, and how they become results."""

import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.compute import reduction
from sharedmask.sources.values import Conversion

F4, F8, I2 = np.dtype("f4"), np.dtype("f8"), np.dtype("i2")


def conversion(stored="i2", result="f4", slope=1.0, inter=0.0, nan_policy="propagate"):
    scaled = apply_read_scaling(np.zeros(1, stored), slope, inter).dtype
    return Conversion(slope, inter, scaled, np.dtype(result), nan_policy)


def random_rows(n_rows=50, n_timepoints=9, dtype="i2", seed=0):
    return np.random.default_rng(seed).normal(0, 1000, (n_rows, n_timepoints)).astype(dtype)


def reduce_regions(rows, finite, out, how, strategy, index, offsets, first, weights=None, n_parts=1):
    """``out[first + i]`` = one value per volume over the rows ``index[offsets[i]:offsets[i + 1]]``."""
    asked = (rows, finite, how, strategy, index, offsets, weights, n_parts)
    for part in reduction.parts(*asked):
        reduction.reduce_part(rows, finite, out, how, strategy, first, part)


INDEX = np.array([3, 49, 0, 3, 17])
