"""Confounds and sample masks: tables and volume numbers, as callers give them.

Covers: reading and checking them for one image. Does not cover: what they are used for (``cleaning``).
"""

import contextlib
import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import ParameterError
from sharedmask.sources.source import Facts


def confounds_table(facts: Facts, confounds: Any) -> NDArray[np.float64]:
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


def kept_volumes(facts: Facts, sample_mask: Any) -> NDArray[np.intp]:
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
