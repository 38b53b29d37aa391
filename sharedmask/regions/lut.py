"""Look-up tables: the names of an atlas's labels.

Covers: files as BIDS, AtlasPack, FreeSurfer and spreadsheets have them, data frames, mappings. Does not
cover: how text becomes cells (``delimited``), which labels an image holds (``regions``).
"""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sharedmask.errors import MaskError, MissingFileError
from sharedmask.system.delimited import is_missing, number, read_cells

_COLUMNS = ("index", "name", "label")
_EXPECTED = (
    "expected are the columns index and name (or label), or without a header a value and a name per row, "
    "or FreeSurfer's colour table"
)


def read_lut(lut: Any) -> dict[int, str]:
    """Value -> name, of what :func:`lut_columns` takes; of None no name at all.

    Examples
    --------
    >>> read_lut({3: "pons"})
    {3: 'pons'}
    """
    if lut is None:
        return {}
    columns = lut_columns(lut)
    return dict(zip(columns["index"], columns["name"], strict=True))


def image_and_lut(atlas: Any, lut: Any = None) -> tuple[Any, Any]:
    """The image of an atlas and its table: of a ``Bunch``, as nilearn's fetchers give, its own.

    Examples
    --------
    >>> from sklearn.utils import Bunch
    >>> image_and_lut(Bunch(maps="atlas.nii.gz", labels=["pons"], lut={1: "pons"}))
    ('atlas.nii.gz', {1: 'pons'})
    """
    if type(atlas).__name__ != "Bunch" or "maps" not in atlas:
        return atlas, lut
    return atlas["maps"], atlas.get("lut") if lut is None else lut


def lut_columns(lut: Any) -> dict[str, list[Any]]:
    """The columns of a look-up table: ``index``, integers, each once; ``name``, text; and what else it has.

    A label without a name (nothing, or ``n/a``) goes by its number. Rows that say the same twice count once.

    ``lut``: a file of text or a frame with the columns ``index`` and ``name``, in capitals or not, and
    ``label`` if there is no ``name``; a file without a header whose rows are a value and a name, or those of
    FreeSurfer's colour tables; or ``{value: name}``.

    Raises MissingFileError, MaskError: naming the file and what is wrong with it.
    """
    path = os.path.expanduser(os.fsdecode(lut)) if isinstance(lut, (str, os.PathLike)) else None
    where = f"look-up table {path}" if path else "look-up table"
    if path is not None:
        columns = _read_file(path, where)
    elif hasattr(lut, "columns"):
        columns = _of_frame(lut)
    elif isinstance(lut, Mapping):
        columns = {"index": list(lut), "name": list(lut.values())}
    else:
        what = f"not a path, a DataFrame or a mapping but a {type(lut).__name__}"
        raise MaskError(f"{where}: {what}: give {{value: name}}")
    return _each_label_once(_standard(columns, where), where)


def _read_file(path: str, where: str) -> dict[str, list[Any]]:
    try:
        rows = read_cells(path)
    except MissingFileError as error:
        raise MissingFileError(f"look-up table {error}") from error
    except ValueError as error:
        raise MaskError(f"{where} cannot be read: {error}") from error
    if rows and _integer(rows[0][0]) is not None:
        return _of_rows(rows, where)
    header, *rows = rows or [[]]
    if header and not header[-1]:
        longer = " | ".join(next(row for row in rows if row[-1]))
        raise MaskError(f"{where}: the row {longer!r} has more cells than the header: {_EXPECTED}")
    if twice := [name for name in _COLUMNS if [cell.lower() for cell in header].count(name) > 1]:
        raise MaskError(f"{where} has the column {twice[0]} more than once: {_EXPECTED}")
    return {name: [row[column] for row in rows] for column, name in enumerate(header)}


def _of_rows(rows: list[list[str]], where: str) -> dict[str, list[Any]]:
    """The columns of a table without a header."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    integers = [all(_integer(cell) is not None for cell in column) for column in columns]
    if integers == [True, False] or integers in ([True, False, *[True] * n] for n in (3, 4)):
        return {"index": columns[0], "name": columns[1]}
    raise MaskError(f"{where} has no header, and {len(columns)} columns: {_EXPECTED}")


def _of_frame(lut: Any) -> dict[str, list[Any]]:
    columns = {name: list(lut[name]) for name in lut.columns}
    index = getattr(lut, "index", None)
    named = str(getattr(index, "name", None)).lower() == "index"
    return {"index": list(index), **columns} if named and index is not None else columns


def _standard(columns: Mapping[Any, list[Any]], where: str) -> dict[str, list[Any]]:
    """The same columns, with ``index`` and ``name`` called so."""
    known = {str(key).strip().lower(): key for key in reversed(columns)}
    known |= {key: key for key in columns if key in _COLUMNS}
    name = known.get("name", known.get("label"))
    absent = [what for what, key in (("index", known.get("index")), ("name", name)) if key is None]
    if absent:
        raise MaskError(f"{where} has no column {' nor '.join(absent)}, only {list(columns)}: {_EXPECTED}")
    others = {key: cells for key, cells in columns.items() if key not in (known["index"], name)}
    return {"index": columns[known["index"]], "name": columns[name], **others}


def _each_label_once(columns: dict[str, list[Any]], where: str) -> dict[str, list[Any]]:
    rows: dict[int, int] = {}
    values, names = [], []
    for row, (index, given) in enumerate(zip(columns["index"], columns["name"], strict=True)):
        value = _integer(index)
        if value is None:
            raise MaskError(f"{where}: the index {index!r} is not an integer")
        values.append(value)
        names.append(_name(given) or str(value))
        first = rows.setdefault(value, row)
        if names[first] != names[row]:
            raise MaskError(f"{where} has the index {value} twice: {names[first]!r} and {names[row]!r}")
    every = {**columns, "index": values, "name": names}
    return {name: [cells[row] for row in rows.values()] for name, cells in every.items()}


def _name(given: Any) -> str:
    """The name in a cell; empty if it holds none."""
    if isinstance(given, str):
        return "" if is_missing(given.strip()) else given.strip()
    nothing = given is None or str(given) in ("nan", "<NA>", "NaT")
    return "" if nothing else str(given)


def _integer(index: Any) -> int | None:
    with suppress(ValueError, TypeError, OverflowError):
        if isinstance(index, str):
            return int(index) if re.fullmatch(r"\s*[+-]?\d+\s*", index) else _whole(number(index))
        return _whole(index)
    return None


def _whole(number: Any) -> int | None:
    return int(number) if int(number) == number else None
