"""Confounds and sample masks: tables and volume numbers, as callers give them.

Covers: reading and checking them for one image. Does not cover: how text becomes cells (``delimited``), what
confounds are used for (``cleaning``).
"""

import contextlib
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from sharedmask.errors import ConfoundsError, MissingFileError, ParameterError, SharedMaskWarning
from sharedmask.sources.source import Facts
from sharedmask.system.delimited import is_missing, number, read_cells
from sharedmask.typing import NDArray, Numbers


def confounds_table(facts: Facts, confounds: Any, kept: Numbers | None = None) -> NDArray[np.float64]:
    """One (n_timepoints, n_confounds) array of an array, a data frame, a path or a list of those.

    Of volumes that are not ``kept`` there need be no numbers.
    """
    many = isinstance(confounds, list | tuple) and bool(confounds)
    tables = confounds if many and not _is_rows(confounds) else [confounds]
    return np.hstack([_of_length(facts, table, kept) for table in tables])


def warn_of_too_many(facts: Facts, table: NDArray[np.float64], kept: Numbers | None, detrend: bool) -> None:
    """Warn of confounds that leave nothing of any signal but rounding errors; nilearn says nothing."""
    table = table if kept is None else table[kept]
    n_kept, n_columns = table.shape
    if n_columns + 1 + detrend < n_kept:
        return
    spread = table.std(axis=0)
    scaled = (table - table.mean(axis=0)) / np.where(spread, spread, 1)
    trend = np.linspace(-1, 1, n_kept)[:, None][:, : int(detrend)]
    if np.linalg.matrix_rank(np.hstack([np.ones((n_kept, 1)), trend, scaled])) == n_kept:
        warnings.warn(
            f"{facts.name}: {n_columns} confounds of {n_kept} volumes leave nothing of any signal "
            "but rounding errors: give fewer",
            SharedMaskWarning,
            stacklevel=2,
        )


def _is_rows(confounds: Any) -> bool:
    """Whether a list holds the rows of one table, and not several tables."""
    return all(isinstance(row, list | tuple) and all(np.ndim(cell) == 0 for cell in row) for row in confounds)


def _of_length(facts: Facts, given: Any, kept: Numbers | None) -> NDArray[np.float64]:
    table = read_confounds(given, kept)
    if len(table) != facts.n_timepoints:
        raise ConfoundsError(
            f"{_called(given)}: {len(table)} rows for the {facts.n_timepoints} volumes of {facts.name}"
        )
    return table


def read_confounds(given: Any, kept: Numbers | None = None) -> NDArray[np.float64]:
    """The (n_rows, n_confounds) numbers of an array, a data frame or a file of text.

    What rows that are not ``kept`` lack is interpolated: a filter looks at some of them, and nilearn takes
    rows without any number out, so that those after them would be of other volumes.

    The first row of a file may hold the columns' names: it does if there is text in it.

    Raises ConfoundsError: something that is kept is no finite number, naming the file and the column.
    """
    where = _called(given)
    columns: Sequence[Any]
    if isinstance(given, str | os.PathLike):
        columns, table = _read_file(given, where)
    else:
        columns, table = list(getattr(given, "columns", ())), _as_numbers(given, where)
    if len(columns) != table.shape[1]:
        columns = range(table.shape[1])
    rows = np.arange(len(table))
    known = rows if kept is None else np.intersect1d(rows, kept)
    bad = np.argwhere(~np.isfinite(table))
    if len(bad := bad[np.isin(bad[:, 0], known)]):
        row, column = bad[0]
        raise ConfoundsError(
            f"{where}: no finite number in row {row}, column {columns[column]!r} ({table[row, column]}); "
            "replace or drop it"
        )
    if len(known) in (0, len(rows)):
        return table
    between = np.array([np.interp(rows, known, column[known]) for column in table.T]).T
    return np.where(np.isfinite(table), table, between.reshape(table.shape))


def named_columns(path: str | os.PathLike[str]) -> tuple[list[str], NDArray[np.float64]]:
    """Names and (n_rows, n_columns) numbers of a table, NaN where there is none.

    Raises ConfoundsError: columns have no names, or something is no number.
    """
    names, table = _read_file(path, _called(path))
    if not names:
        raise ConfoundsError(f"{path} has no names of columns: its first row holds numbers")
    return names, table


def _called(given: Any) -> str:
    return os.fsdecode(given) if isinstance(given, str | os.PathLike) else "the confounds"


def _as_numbers(given: Any, where: str) -> NDArray[np.float64]:
    values = given.to_numpy() if hasattr(given, "to_numpy") else given
    try:
        table = np.ma.filled(np.ma.asanyarray(values, dtype=np.float64), np.nan)
    except (ValueError, TypeError) as error:
        column = _text_column(given)
        raise ConfoundsError(f"{where}: not a table of numbers: {column}{error}") from error
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2:
        raise ConfoundsError(f"{where}: {table.ndim} dimensions, not a table of rows and columns")
    return table


def _text_column(frame: Any) -> str:
    """Which column of a data frame does not hold numbers."""
    for name in getattr(frame, "columns", ()):
        try:
            np.asarray(frame[name], dtype=np.float64)
        except (ValueError, TypeError):
            return f"column {name!r}: "
    return ""


def _read_file(path: str | os.PathLike[str], where: str) -> tuple[list[str], NDArray[np.float64]]:
    try:
        rows = read_cells(os.path.expanduser(os.fsdecode(path)))
    except MissingFileError as error:
        raise MissingFileError(f"confounds {error}") from error
    except ValueError as error:
        raise ConfoundsError(f"{where}: cannot be read as a table of confounds: {error}") from error
    names, rows = _header(rows)
    if "" in names:
        raise ConfoundsError(
            f"{where}: column {names.index('')} has no name, and does not number the rows; name it or drop it"
        )
    numbers = list(map(_numbers, rows))
    for row, cells in enumerate(numbers):
        if None in cells:
            column = cells.index(None)
            text, name = rows[row][column], names[column] if names else column
            point = "; decimals have a point, not a comma" if "," in text else ""
            raise ConfoundsError(f"{where}: {text!r} in row {row}, column {name!r} is not a number{point}")
    table = np.asarray(numbers, dtype=np.float64)
    return names, table if table.ndim == 2 else table.reshape(0, len(names))


def _header(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns' names, empty if the first row holds numbers, and the other rows.

    Names may be 0, 1, 2 and so on, which pandas gives to columns without any. A first column that has no name
    and numbers the rows, as pandas and R write it, is left out.
    """
    if not rows:
        return [], rows
    names, *others = rows
    first = [row[0] for row in others]
    if not names[0] and first in (_counted(len(first)), _counted(len(first), 1)):
        return names[1:], [row[1:] for row in others]
    named = any(_number(cell) is None for cell in names) or (len(names) > 2 and names == _counted(len(names)))
    return (names, others) if named else ([], rows)


def _counted(n: int, start: int = 0) -> list[str]:
    return [str(number) for number in range(start, start + n)]


def _numbers(cells: list[str]) -> Sequence[float | None]:
    """Those of a row, of which most have nothing else: a table of fMRIPrep has tens of thousands."""
    if "_" not in "".join(cells):
        with contextlib.suppress(ValueError):
            return list(map(float, cells))
    return list(map(_number, cells))


def _number(cell: str) -> float | None:
    """NaN where there is no value, None where it is not a number."""
    return float("nan") if is_missing(cell) else number(cell)


def kept_volumes(facts: Facts, sample_mask: Any) -> NDArray[np.intp]:
    """Numbers of the volumes to keep, of an index array, a boolean one or a list of one such."""
    try:
        kept = np.asarray(_of_one_run(sample_mask))
    except ValueError as error:
        raise ParameterError(
            f"sample_mask has parts of several lengths for the one run {facts.name}"
        ) from error
    n_timepoints = facts.n_timepoints
    of_image = f"the {n_timepoints} volumes of {facts.name}"
    if kept.ndim != 1 or (kept.dtype.kind not in "iub" and len(kept)):
        given = repr(sample_mask) if kept.ndim == 0 else f"of shape {kept.shape} and {kept.dtype}"
        raise ParameterError(
            f"sample_mask {given} is neither numbers of some of {of_image} nor a boolean for each"
        )
    if kept.dtype == bool and len(kept) != n_timepoints:
        raise ParameterError(f"sample_mask has {len(kept)} booleans for {of_image}")
    kept = np.flatnonzero(kept) if kept.dtype == bool else kept.astype(np.intp)
    if not len(kept):
        raise ParameterError(f"sample_mask keeps none of {of_image}")
    if kept.min() < 0 or kept.max() >= n_timepoints:
        wrong = kept.min() if kept.min() < 0 else kept.max()
        raise ParameterError(f"sample_mask asks for volume {wrong} of {facts.name}, which has {n_timepoints}")
    if len(kept) > n_timepoints:
        raise ParameterError(f"sample_mask asks for {len(kept)} of {of_image}")
    if len(kept) == n_timepoints > 2 and kept.max() <= 1:
        warnings.warn(
            f"sample_mask has a 0 or a 1 for each of {of_image}: these are taken for numbers of volumes; "
            "give booleans to keep those that have a 1",
            SharedMaskWarning,
            stacklevel=2,
        )
    return kept


def rows_kept(sample_mask: Any) -> Numbers | None:
    """Rows of a table whose volumes are kept, as far as nilearn would take ``sample_mask`` for one run."""
    kept = _of_one_run(sample_mask)
    if not isinstance(kept, np.ndarray):
        return None
    return np.flatnonzero(kept) if kept.dtype == bool else kept


def _of_one_run(sample_mask: Any) -> Any:
    one = isinstance(sample_mask, list | tuple) and len(sample_mask) == 1 and np.ndim(sample_mask[0]) == 1
    return sample_mask[0] if one else sample_mask
