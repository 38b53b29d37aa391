"""The parameters of a request, checked: one clear refusal before any work is done.

Covers: dtypes, non-finite values, cleaning (confounds, sample masks, repetition time), jobs. Does
not cover: which voxels are asked for (``regions``), carrying the request out (``masking``).
"""

import contextlib
import csv
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sharedmask.errors import ParameterError, SharedMaskWarning
from sharedmask.kernels import Cleaning, Conversion, NanPolicy
from sharedmask.pool import effective_n_jobs
from sharedmask.sources import Source

Prefer = Literal["threads", "processes"] | None
OnResult = Callable[[Any, Any], None] | None
Progress = bool | Callable[[int, int], None] | None


class Parameters(TypedDict, total=False):
    """What every request takes, by keyword; described in ``SharedImage.mask_parallel``."""

    n_jobs: int | None
    prefer: Prefer
    dtype: DTypeLike | Literal["auto"] | None
    nan_policy: NanPolicy | None
    standardize: str | bool | None
    detrend: bool
    confounds: Any
    sample_mask: Any
    low_pass: float | None
    high_pass: float | None
    t_r: float | None
    progress: Progress
    on_result: OnResult


@dataclass(frozen=True)
class Request:
    """The checked parameters of one call."""

    dtype: DTypeLike | Literal["auto"] | None
    nan_policy: NanPolicy | None
    cleaning: Cleaning
    n_jobs: int
    prefer: Prefer = None
    progress: Progress = None
    on_result: OnResult = None

    @classmethod
    def checked(
        cls,
        source: Source,
        *,
        n_jobs: int | None = None,
        prefer: Prefer = None,
        dtype: DTypeLike | Literal["auto"] | None = "auto",
        nan_policy: NanPolicy | None = None,
        progress: Progress = None,
        on_result: OnResult = None,
        **cleaning: Any,
    ) -> "Request":
        """Refuse what makes no sense for ``source``; ``cleaning`` goes to :func:`checked_cleaning`."""
        if prefer not in (None, "threads", "processes"):
            raise ParameterError(f"prefer={prefer!r} is none of 'threads', 'processes' and None")
        if nan_policy not in (None, "zero", "propagate", "raise", "omit"):
            raise ParameterError(f"nan_policy={nan_policy!r} is none of 'zero', 'propagate', 'raise', 'omit'")
        return cls(
            dtype=dtype,
            nan_policy=nan_policy,
            cleaning=checked_cleaning(source, **cleaning),
            n_jobs=effective_n_jobs(n_jobs),
            prefer=prefer,
            progress=progress,
            on_result=on_result,
        )

    def conversion(self, source: Source) -> Conversion:
        """For the signals of voxels: nilearn's dtypes, unless told otherwise.

        ``dtype=None`` asks for the values as nibabel gives them, non-finite ones included.
        """
        if self.nan_policy == "omit":
            raise ParameterError(
                "nan_policy='omit' leaves values out of a reduction; a signal keeps its length"
            )
        scaled = source.scaled_dtype
        if self._automatic or self.cleaning.needed:
            result = scaled if scaled.kind == "f" else np.dtype(np.float32)
        else:
            result = scaled if self.dtype is None else np.dtype(self.dtype)
        policy = self.nan_policy or ("propagate" if self.dtype is None else "zero")
        return Conversion(source.slope, source.inter, scaled, result, policy)

    def finished(self, signals: NDArray[Any]) -> NDArray[Any]:
        """Cleaned signals in the dtype asked for."""
        if self.dtype is None or self._automatic:
            return signals
        return signals.astype(self.dtype, copy=False)

    def reduction(self, source: Source) -> Conversion:
        """For one value per region, computed in float64: nilearn's dtypes, unless told otherwise."""
        scaled = source.scaled_dtype
        result = np.dtype(np.float32 if scaled == np.float32 else np.float64)
        if not self._automatic and not self.cleaning.needed:
            result = np.dtype(self.dtype or np.float64)
        return Conversion(source.slope, source.inter, scaled, result, self.nan_policy or "zero")

    @property
    def _automatic(self) -> bool:
        return isinstance(self.dtype, str) and self.dtype == "auto"


def checked_cleaning(
    source: Source,
    *,
    standardize: str | bool | None = None,
    detrend: bool = False,
    confounds: Any = None,
    sample_mask: Any = None,
    low_pass: float | None = None,
    high_pass: float | None = None,
    t_r: float | None = None,
) -> Cleaning:
    """The cleaning asked for, with everything that can be refused beforehand refused."""
    if standardize not in (None, False, True, "zscore_sample", "psc"):
        raise ParameterError(f"standardize={standardize!r} is none of 'zscore_sample', 'psc' and None")
    if (low_pass is not None or high_pass is not None) and t_r is None:
        t_r = _repetition_time(source)
    return Cleaning(
        standardize="zscore_sample" if standardize is True else standardize or None,
        detrend=bool(detrend),
        confounds=None if confounds is None else _confounds(source, confounds),
        sample_mask=None if sample_mask is None else _sample_mask(source, sample_mask),
        low_pass=low_pass,
        high_pass=high_pass,
        t_r=t_r,
    )


def _repetition_time(source: Source) -> float:
    if source.t_r is None:
        raise ParameterError(
            f"a filter needs t_r: neither {source.name} nor a sidecar gives a repetition time"
        )
    if not 0.05 <= source.t_r <= 30:
        warnings.warn(
            f"{source.name} gives a repetition time of {source.t_r:g} s: give t_r= if that is wrong",
            SharedMaskWarning,
            stacklevel=2,
        )
    return source.t_r


def _confounds(source: Source, confounds: Any) -> NDArray[np.float64]:
    """One (n_timepoints, n_confounds) array of an array, a data frame, a path or a list of those."""
    given = confounds if isinstance(confounds, list | tuple) else [confounds]
    return np.hstack([_confound_table(source, one) for one in given])


def _confound_table(source: Source, given: Any) -> NDArray[np.float64]:
    name = "the confounds"
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        given = _read_table(Path(given).expanduser())
    elif hasattr(given, "to_numpy"):
        given = given.to_numpy()
    table = np.asarray(given, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or len(table) != source.n_timepoints:
        raise ParameterError(
            f"{name}: {table.shape[0] if table.ndim else 0} rows for the {source.n_timepoints} volumes "
            f"of {source.name}"
        )
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        raise ParameterError(f"{name}: no finite number in row {row}, column {column}; replace or drop it")
    return table


def _read_table(path: Path) -> list[list[float]]:
    """The numbers of a .tsv, .csv or .txt file, whose first row may hold names."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: cannot be read as a table of confounds: {error}") from error
    delimiter = next((mark for mark in "\t," if mark in text), None)
    lines = [line for line in text.splitlines() if line.strip()]
    rows = list(csv.reader(lines, delimiter=delimiter)) if delimiter else [line.split() for line in lines]
    if rows and not any(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    try:
        return [[_number(cell) for cell in row] for row in rows]
    except ValueError as error:
        raise ParameterError(f"{path}: {error}") from error


def _number(cell: str) -> float:
    return float("nan") if cell.strip().lower() in ("n/a", "") else float(cell)


def _is_number(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        _number(cell)
        return True
    return False


def _sample_mask(source: Source, sample_mask: Any) -> NDArray[np.intp]:
    """Numbers of the volumes to keep, of an index array, a boolean one or a list of one such."""
    if isinstance(sample_mask, list | tuple) and len(sample_mask) == 1 and np.ndim(sample_mask[0]) == 1:
        sample_mask = sample_mask[0]
    kept = np.asarray(sample_mask)
    n_timepoints = source.n_timepoints
    if kept.ndim != 1 or kept.dtype.kind not in "iub" or (kept.dtype == bool and len(kept) != n_timepoints):
        raise ParameterError(
            f"sample_mask must hold volume numbers, or one boolean for each of {n_timepoints}"
        )
    kept = np.flatnonzero(kept) if kept.dtype == bool else kept.astype(np.intp)
    if not len(kept):
        raise ParameterError("sample_mask keeps no volume")
    if kept.min() < 0 or kept.max() >= n_timepoints:
        wrong = kept.min() if kept.min() < 0 else kept.max()
        raise ParameterError(
            f"sample_mask asks for volume {wrong} of {source.name}, which has {n_timepoints}"
        )
    return kept
