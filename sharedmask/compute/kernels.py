"""Pure array functions that workers run: gather, convert, reduce, clean.

Covers: what happens to the rows of an image (one row per voxel, each the voxel's time series).
Does not cover: where rows live (``segment``), who runs a kernel (``pool``), which voxels make a
region (``regions``). No files and no processes here; nilearn is imported only to clean.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.compute.cleaning import Cleaning
from sharedmask.sources.values import Conversion, convert, pieces
from sharedmask.typing import Array
from sharedmask.workers.failure import Failure


def gather(
    rows: Array, finite: bool, out: Array, conversion: Conversion, index: NDArray[np.intp], start: int
) -> None:
    """``out[start + i] = rows[index[i]]``, converted."""
    target = out[start : start + len(index)]
    if conversion.keeps(rows.dtype, finite):
        # mode="clip" writes straight into `out`; the default checks indices through a copy of it.
        np.take(rows, index, axis=0, out=target, mode="clip")
        return
    for piece in pieces(len(index), rows.shape[1] * rows.itemsize):
        convert(rows[index[piece]], target[piece], conversion)


def signals_of(rows: Array, finite: bool, conversion: Conversion, index: NDArray[np.intp]) -> Array:
    """Fresh (n_timepoints, n_voxels) array, C-contiguous as nilearn's maskers give it."""
    taken = np.empty((len(index), rows.shape[1]), dtype=conversion.result)
    gather(rows, finite, taken, conversion, index, 0)
    return np.ascontiguousarray(taken.T)


def clean(
    rows: Array,
    finite: bool,
    out: Array,
    conversion: Conversion,
    cleaning: Cleaning,
    index: NDArray[np.intp],
    start: int,
) -> None:
    """``out[start + i]`` = the cleaned series of voxel ``index[i]``."""
    cleaned = cleaning.apply(signals_of(rows, finite, conversion, index))
    out[start : start + len(index)] = cleaned.T


def apply(
    rows: Array,
    finite: bool,
    conversion: Conversion,
    cleaning: Cleaning,
    function: Callable[[Array], Any],
    index: NDArray[np.intp],
) -> Any:
    """What the user's function makes of one region's (n_timepoints, n_voxels) array."""
    signals = signals_of(rows, finite, conversion, index)
    return function(cleaning.apply(signals) if cleaning.needed else signals)


def attempt(function: Callable[[Any], Any], item: Any) -> Any:
    """What the user's function makes of ``item``, or the :class:`Failure` that it ends with."""
    try:
        return function(item)
    except Exception as error:
        return Failure(error)
