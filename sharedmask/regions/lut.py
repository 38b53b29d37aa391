"""Look-up tables: the names of an atlas's labels.

Covers: TSV and CSV files as BIDS has them, data frames, mappings. Does not cover: which labels an
image holds (``regions``).
"""

import csv
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sharedmask.errors import MaskError, MissingFileError


def read_lut(lut: Any) -> dict[int, str]:
    """Value -> name.

    Parameters
    ----------
    lut : path, DataFrame, mapping or None
        A TSV or CSV file or a frame with the columns ``index`` and ``name``, or ``{value: name}``.

    Raises
    ------
    MissingFileError, MaskError
        Naming the file and what is wrong with it.

    Examples
    --------
    >>> read_lut({3: "pons"})
    {3: 'pons'}
    """
    path = os.path.expanduser(os.fsdecode(lut)) if isinstance(lut, (str, os.PathLike)) else None
    where = f"look-up table {path}" if path else "look-up table"
    if lut is None:
        return {}
    if path is not None:
        columns = _read_file(path, where)
    elif hasattr(lut, "columns"):
        columns = {name: list(lut[name]) for name in lut.columns}
    elif isinstance(lut, Mapping):
        columns = {"index": list(lut), "name": list(lut.values())}
    else:
        raise MaskError(f"{where}: not a path, a DataFrame or a mapping but a {type(lut).__name__}")
    return _names_by_value(columns, where)


def _read_file(path: str, where: str) -> dict[str, list[Any]]:
    try:
        return _read_columns(path)
    except FileNotFoundError as error:
        raise MissingFileError(f"{where} does not exist") from error
    except (OSError, ValueError, csv.Error) as error:
        raise MaskError(f"{where} cannot be read: {error}") from error


def _read_columns(path: str) -> dict[str, list[Any]]:
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        delimiter = "\t" if "\t" in file.readline() else ","
        file.seek(0)
        table = csv.DictReader(file, delimiter=delimiter, strict=True)
        fields, rows = table.fieldnames or (), list(table)
    return {field: [row[field] for row in rows] for field in fields}


def _names_by_value(columns: Mapping[str, list[Any]], where: str) -> dict[int, str]:
    if absent := {"index", "name"} - set(columns):
        raise MaskError(f"{where} has no column {' nor '.join(sorted(absent))}, only {list(columns)}")
    names: dict[int, str] = {}
    for index, name in zip(columns["index"], columns["name"], strict=True):
        value = _integer(index, where)
        if value in names:
            raise MaskError(f"{where} has the index {value} twice: {names[value]!r} and {name!r}")
        names[value] = str(name or value)
    return names


def _integer(index: Any, where: str) -> int:
    with suppress(ValueError, TypeError, OverflowError):
        if (value := int(float(index))) == float(index):
            return value
    raise MaskError(f"{where}: the index {index!r} is not an integer")
