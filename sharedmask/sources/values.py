"""Stored values and true ones: scaling, values that are not finite, dtypes.

Covers: how stored values become results, and pieces that stay in a core's cache.
Does not cover: reading values (``codecs``, ``loader``), what is made of them.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.typing import Array

NanPolicy = Literal["zero", "propagate", "raise", "omit"]

# Work goes through pieces that stay in a core's cache: whatever follows the gather then costs
# arithmetic only, not another trip to memory.
PIECE_BYTES = 256 * 1024
# Several arrays of a region at a time are in there together, and the larger they are the less threads wait
# for each other in the interpreter.
REGION_BYTES = 2 * 2**20
# What needs all rows of a volume at once, picked out of every row, goes through few, larger pieces.
VOLUMES_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Conversion:
    """How stored values become results: scaling, non-finite values, dtype, in this order.

    ``scaled`` is the dtype that nibabel's ``apply_read_scaling`` gives for these values; the
    arithmetic below is the same, so the bits are too.
    """

    slope: float
    inter: float
    scaled: np.dtype[Any]
    result: np.dtype[Any]
    nan_policy: NanPolicy = "propagate"
    image: str = "the image"

    def keeps(self, stored: np.dtype[Any], finite: bool) -> bool:
        """Whether stored values are already the results."""
        checked = self.nan_policy != "propagate" and not finite and stored.kind == "f"
        return stored == self.result and not self.is_scaled and not checked

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)


def scale(stored: Array, conversion: Conversion) -> Array:
    """True values of stored ones; the argument itself where no scaling is needed."""
    if not conversion.is_scaled:
        return stored
    values = stored
    if conversion.slope != 1.0:
        values = values * np.asarray(conversion.slope, dtype=conversion.scaled)[None]
    if conversion.inter != 0.0:
        values = values + np.asarray(conversion.inter, dtype=conversion.scaled)[None]
    return values


def convert(stored: Array, out: Array, conversion: Conversion) -> bool:
    """Write the true values of ``stored`` into ``out``, as ``conversion`` says; whether all are finite."""
    values, finite = true_values(stored, conversion)
    np.copyto(out, values, casting="unsafe")
    return finite


def true_values(stored: Array, conversion: Conversion) -> tuple[Array, bool]:
    """The same before they have the result's dtype."""
    values = scale(stored, conversion)
    finite = values.dtype.kind != "f" or all_finite(values)
    if conversion.nan_policy != "propagate" and not finite:
        values = _without_nonfinite(values, conversion)
    return values, finite


def all_finite(values: Array) -> bool:
    """Whether no value is NaN or infinite; one fast pass in the usual case."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(values, axis=None)
    # A finite sum proves it; finite values whose sum overflows need the slow look.
    return bool(np.isfinite(total)) or bool(np.isfinite(values).all())


def _without_nonfinite(values: Array, conversion: Conversion) -> Array:
    bad = ~np.isfinite(values)
    if conversion.nan_policy == "raise":
        found = f"{np.count_nonzero(bad)} of {bad.size} values"
        raise ParameterError(f"{conversion.image}: {found} looked at are not finite, and nan_policy='raise'")
    return np.where(bad, values.dtype.type(0 if conversion.nan_policy == "zero" else np.nan), values)


def pieces(n_rows: int, row_bytes: int, piece_bytes: int = PIECE_BYTES) -> Iterator[slice]:
    """Slices of rows of at most ``piece_bytes``; by default they fit a core's cache."""
    step = max(1, piece_bytes // max(row_bytes, 1))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))
