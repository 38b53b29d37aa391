"""Reductions of volumes: one value per region of each volume that passes by, nothing kept.

Covers: the ways to reduce that need one volume at a time, over voxels sorted by region. Does not cover:
those that need whole series, or rows of an image that is held (``kernels``), which voxels make a region
(``regions``), reading volumes (``loading``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.kernels import Conversion, convert, pieces

Array = NDArray[Any]

_PIECE_BYTES = 4 * 2**20  # of float64 values: a few volumes of a whole brain


@dataclass(frozen=True)
class Spans:
    """Regions as spans of sorted voxels: region ``i`` is ``offsets[i]:offsets[i + 1]``; none is empty."""

    offsets: NDArray[np.intp]

    @cached_property
    def sizes(self) -> NDArray[np.intp]:
        return np.diff(self.offsets)

    @cached_property
    def codes(self) -> NDArray[np.intp]:
        """The region of each voxel."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


def reduce_volumes(stored: Array, out: Array, conversion: Conversion, strategy: str, spans: Spans) -> bool:
    """``out[v, i]`` = one value of region ``i`` in volume ``v``.

    Parameters
    ----------
    stored : (n_volumes, n_voxels) array
        Stored values of the voxels of all regions, one region after the other.
    out : (n_volumes, n_regions) array
    conversion : Conversion
        How stored values become true ones, in float64.
    strategy : str
        One of ``STRATEGIES``. The numbers are those of ``kernels.STRATEGIES``, to the bit.
    spans : Spans

    Returns
    -------
    bool
        Whether all true values are finite.

    Examples
    --------
    >>> plain = Conversion(1.0, 0.0, np.dtype("i2"), np.dtype("f8"))
    >>> out = np.empty((1, 2))
    >>> reduce_volumes(np.array([[1, 2, 6]], "i2"), out, plain, "mean", Spans(np.array([0, 2, 3])))
    True
    >>> out
    array([[1.5, 6. ]])
    """
    finite = True
    for piece in pieces(len(stored), stored.shape[1] * 8, _PIECE_BYTES):
        values = np.empty(stored[piece].shape)
        finite = convert(stored[piece], values, conversion) and finite
        out[piece] = STRATEGIES[strategy](values, spans)
    return finite


def _sum(values: Array, spans: Spans) -> Array:
    # bincount adds one voxel after the other, as scipy.ndimage does; add.reduceat in another order.
    n_regions = len(spans.sizes)
    return np.stack([np.bincount(spans.codes, weights=row, minlength=n_regions) for row in values])


def _mean(values: Array, spans: Spans) -> Array:
    return np.asarray(_sum(values, spans) / spans.sizes)


def _variance(values: Array, spans: Spans) -> Array:
    centred = values - _mean(values, spans)[:, spans.codes]
    return _mean(centred**2, spans)


def _standard_deviation(values: Array, spans: Spans) -> Array:
    return np.asarray(np.sqrt(_variance(values, spans)))


def _minimum(values: Array, spans: Spans) -> Array:
    return np.asarray(np.minimum.reduceat(values, spans.offsets[:-1], axis=1))


def _maximum(values: Array, spans: Spans) -> Array:
    return np.asarray(np.maximum.reduceat(values, spans.offsets[:-1], axis=1))


def _median(values: Array, spans: Spans) -> Array:
    bounds = zip(spans.offsets, spans.offsets[1:], strict=False)
    return np.stack([np.median(values[:, start:stop], axis=1) for start, stop in bounds], axis=1)


STRATEGIES: dict[str, Callable[[Array, Spans], Array]] = {
    "mean": _mean,
    "median": _median,
    "sum": _sum,
    "minimum": _minimum,
    "maximum": _maximum,
    "variance": _variance,
    "standard_deviation": _standard_deviation,
}
