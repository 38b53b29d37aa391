"""Pure array functions that workers run: gather, convert, reduce, clean.

Covers: what happens to the rows of an image (one row per voxel, each the voxel's time series).
Does not cover: where rows live (``segment``), who runs a kernel (``pool``), which voxels make a
region (``regions``). No files and no processes here; nilearn is imported only to clean.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sharedmask.compute.cleaning import Cleaning
from sharedmask.sources.values import Conversion, convert, pieces
from sharedmask.system.process import Lock
from sharedmask.typing import Array, NDArray

_lock = Lock()
_limits: list[Any] = []  # of BLAS, the same for everyone who works under it


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Products on one thread, in all of this process, until the last caller has left.

    Workers are the parallelism, and products of one thread do not depend on their number.
    """
    from threadpoolctl import threadpool_limits

    with _lock:
        _limits.append(_limits[0] if _limits else threadpool_limits(1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            limits = _limits.pop()
            if not _limits:
                limits.restore_original_limits()


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
    to: NDArray[np.intp],
    which: NDArray[np.intp],
) -> Array | None:
    """``out[to[i]]`` = the cleaned series of voxel ``index[which[i]]``; what is needed to end cleaning it."""
    signals = signals_of(rows, finite, conversion, index)
    signals, before = cleaning.begin(signals) if cleaning.looks_at_all else (cleaning.apply(signals), None)
    cleaned = np.ascontiguousarray(signals.T)
    for piece in pieces(len(to), cleaned[0].nbytes):
        out[to[piece]] = cleaned[which[piece]]
    return None if before is None else before[which]


def apply(
    rows: Array,
    finite: bool,
    conversion: Conversion,
    cleaning: Cleaning,
    function: Callable[..., Any],
    positions: NDArray[np.intp],
    first: int,
    last: int,
    *given: Any,
) -> Any:
    """What the user's function makes of one region's (n_timepoints, n_voxels) array, and of ``given``.

    The region's voxels are ``positions[first:last]``.
    """
    signals = signals_of(rows, finite, conversion, positions[first:last])
    return function(cleaning.apply(signals) if cleaning.needed else signals, *given)


def attempt(function: Callable[[Any], Any], item: Any) -> Any:
    """What the user's function makes of ``item``, or the :class:`Failure` that it ends with."""
    from sharedmask.workers.failure import Failure

    try:
        return function(item)
    except Exception as error:
        return Failure(error)
