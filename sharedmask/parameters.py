"""The parameters of a request, checked: one clear refusal before any work is done.

Covers: dtypes, non-finite values, cleaning (confounds, sample masks, repetition time), jobs. Does
not cover: which voxels are asked for (``regions``), carrying the request out (``masking``).
"""

import contextlib
import csv
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sharedmask.errors import ParameterError, SharedMaskWarning
from sharedmask.kernels import STRATEGIES, Cleaning, Conversion, NanPolicy
from sharedmask.pool import effective_n_jobs
from sharedmask.sources import Facts

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
        facts: Facts,
        *,
        n_jobs: int | None = None,
        prefer: Prefer = None,
        dtype: DTypeLike | Literal["auto"] | None = "auto",
        nan_policy: NanPolicy | None = None,
        progress: Progress = None,
        on_result: OnResult = None,
        **cleaning: Any,
    ) -> "Request":
        """Refuse what makes no sense for this image; ``cleaning`` goes to :func:`checked_cleaning`."""
        if prefer not in (None, "threads", "processes"):
            raise ParameterError(f"prefer={prefer!r} is none of 'threads', 'processes' and None")
        if nan_policy not in (None, "zero", "propagate", "raise", "omit"):
            raise ParameterError(f"nan_policy={nan_policy!r} is none of 'zero', 'propagate', 'raise', 'omit'")
        check_names(cleaning)
        _check_dtype(dtype)
        return cls(
            dtype=dtype,
            nan_policy=nan_policy,
            cleaning=checked_cleaning(facts, **cleaning),
            n_jobs=effective_n_jobs(n_jobs),
            prefer=prefer,
            progress=progress,
            on_result=on_result,
        )

    def conversion(self, facts: Facts) -> Conversion:
        """For the signals of voxels: nilearn's dtypes, unless told otherwise.

        ``dtype=None`` asks for the values as nibabel gives them, non-finite ones included.
        """
        if self.nan_policy == "omit":
            raise ParameterError(
                "nan_policy='omit' leaves values out of a reduction; a signal keeps its length"
            )
        scaled = facts.scaled_dtype
        if self._automatic or self.cleaning.needed:
            result = scaled if scaled.kind == "f" else np.dtype(np.float32)
        else:
            result = scaled if self.dtype is None else np.dtype(self.dtype)
        policy = self.nan_policy or ("propagate" if self.dtype is None else "zero")
        return Conversion(facts.slope, facts.inter, scaled, result, policy, facts.name)

    def finished(self, signals: NDArray[Any]) -> NDArray[Any]:
        """Cleaned signals in the dtype asked for."""
        if self.dtype is None or self._automatic:
            return signals
        return signals.astype(self.dtype, copy=False)

    def reduction(self, facts: Facts) -> Conversion:
        """For one value per region, computed in float64: nilearn's dtypes, unless told otherwise."""
        scaled = facts.scaled_dtype
        result = np.dtype(np.float32 if scaled == np.float32 else np.float64)
        if not self._automatic and not self.cleaning.needed:
            result = np.dtype(self.dtype or np.float64)
        return Conversion(facts.slope, facts.inter, scaled, result, self.nan_policy or "zero", facts.name)

    @property
    def _automatic(self) -> bool:
        return isinstance(self.dtype, str) and self.dtype == "auto"


def _check_dtype(dtype: DTypeLike | None) -> None:
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return
    try:
        kind = np.dtype(dtype).kind
    except TypeError as error:
        raise ParameterError(f"dtype={dtype!r}: {error}") from error
    if kind not in "iuf":
        raise ParameterError(f"dtype={dtype!r} holds no signals: give an integer or float type")


def check_names(given: Iterable[str], *more: str) -> None:
    """Refuse names that are neither among :class:`Parameters` nor ``more``.

    Raises
    ------
    TypeError
        Naming those that there are.
    """
    known = {*Parameters.__annotations__, *more}
    for name in given:
        if name not in known:
            raise TypeError(f"there is no parameter {name!r}; there are {', '.join(sorted(known))}")


def check_strategy(strategy: str) -> None:
    """Refuse what is no way to reduce a region to one value.

    Raises
    ------
    ParameterError
        Naming the ways that there are.
    """
    if strategy not in STRATEGIES:
        raise ParameterError(f"strategy={strategy!r} is none of {', '.join(STRATEGIES)}")


def checked_cleaning(
    facts: Facts,
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
    if low_pass is not None or high_pass is not None:
        t_r = _repetition_time(facts) if t_r is None else t_r
        _check_filter(low_pass, high_pass, t_r)
    return Cleaning(
        standardize="zscore_sample" if standardize is True else standardize or None,
        detrend=bool(detrend),
        confounds=None if confounds is None else _confounds(facts, confounds),
        sample_mask=None if sample_mask is None else _sample_mask(facts, sample_mask),
        low_pass=low_pass,
        high_pass=high_pass,
        t_r=t_r,
    )


def _check_filter(low_pass: float | None, high_pass: float | None, t_r: float) -> None:
    given = {"low_pass": low_pass, "high_pass": high_pass, "t_r": t_r}
    for name, value in given.items():
        if value is not None and not value > 0:
            raise ParameterError(f"{name}={value} must be above 0")
    if low_pass is not None and high_pass is not None and high_pass >= low_pass:
        raise ParameterError(f"low_pass={low_pass} must be above high_pass={high_pass}")


def _repetition_time(facts: Facts) -> float:
    if facts.t_r is None:
        raise ParameterError(
            f"a filter needs t_r: neither {facts.name} nor a sidecar gives a repetition time"
        )
    if not 0.05 <= facts.t_r <= 30:
        warnings.warn(
            f"{facts.name} gives a repetition time of {facts.t_r:g} s: give t_r= if that is wrong",
            SharedMaskWarning,
            stacklevel=2,
        )
    return facts.t_r


def _confounds(facts: Facts, confounds: Any) -> NDArray[np.float64]:
    """One (n_timepoints, n_confounds) array of an array, a data frame, a path or a list of those."""
    many = isinstance(confounds, list | tuple) and bool(confounds)
    tables = confounds if many and not _is_rows(confounds) else [confounds]
    return np.hstack([_confound_table(facts, table) for table in tables])


def _is_rows(confounds: Any) -> bool:
    """Whether a list holds the rows of one table, and not several tables."""
    return all(isinstance(row, list | tuple) and all(np.ndim(cell) == 0 for cell in row) for row in confounds)


def _confound_table(facts: Facts, given: Any) -> NDArray[np.float64]:
    name = "the confounds"
    if isinstance(given, str | os.PathLike):
        name = os.fspath(given)
        given = _read_table(Path(given).expanduser())
    elif hasattr(given, "to_numpy"):
        given = given.to_numpy()
    try:
        table = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ParameterError(f"{name}: not a table of numbers: {error}") from error
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or len(table) != facts.n_timepoints:
        raise ParameterError(
            f"{name}: {table.shape[0] if table.ndim else 0} rows for the {facts.n_timepoints} volumes "
            f"of {facts.name}"
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
        table = [[_number(cell) for cell in row] for row in rows]
    except ValueError as error:
        raise ParameterError(f"{path}: {error}") from error
    if len({len(row) for row in table}) > 1:
        raise ParameterError(f"{path}: its rows have {sorted({len(row) for row in table})} numbers")
    return table


def _number(cell: str) -> float:
    return float("nan") if cell.strip().lower() in ("n/a", "") else float(cell)


def _is_number(cell: str) -> bool:
    with contextlib.suppress(ValueError):
        _number(cell)
        return True
    return False


def _sample_mask(facts: Facts, sample_mask: Any) -> NDArray[np.intp]:
    """Numbers of the volumes to keep, of an index array, a boolean one or a list of one such."""
    if isinstance(sample_mask, list | tuple) and len(sample_mask) == 1 and np.ndim(sample_mask[0]) == 1:
        sample_mask = sample_mask[0]
    kept = np.asarray(sample_mask)
    n_timepoints = facts.n_timepoints
    if kept.ndim != 1 or kept.dtype.kind not in "iub" or (kept.dtype == bool and len(kept) != n_timepoints):
        raise ParameterError(
            f"sample_mask must hold volume numbers, or one boolean for each of {n_timepoints}"
        )
    kept = np.flatnonzero(kept) if kept.dtype == bool else kept.astype(np.intp)
    if not len(kept):
        raise ParameterError("sample_mask keeps no volume")
    if kept.min() < 0 or kept.max() >= n_timepoints:
        wrong = kept.min() if kept.min() < 0 else kept.max()
        raise ParameterError(f"sample_mask asks for volume {wrong} of {facts.name}, which has {n_timepoints}")
    return kept
