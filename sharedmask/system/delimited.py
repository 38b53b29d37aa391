"""Tables of text as programs and people write them, cell by cell.

Covers: encodings, which mark stands between cells, comments, quotes, blanks at the ends. Does not cover: what
cells mean (``lut``, ``confounds``), writing tables (``tables``).
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator

from sharedmask.errors import MissingFileError
from sharedmask.system import inputs
from sharedmask.system.budget import MemoryBudget

_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
# A colour may be the first cell of a row.
_COMMENT = re.compile(r"\s*#(?![0-9a-fA-F]{3,8}\s*[\t;,])")
_MOST_CELLS = 2**25
_SMALL_BYTES = 2**20  # read without asking whether there is room
_BYTES_PER_BYTE = 16  # of cells, which are texts, for one of the file
_MISSING = ("", "n/a")


def read_cells(path: str | os.PathLike[str]) -> list[list[str]]:
    """The rows of a table, all of one length, cells without the blanks around them.

    Tabs, else semicolons, else commas, else blanks stand between cells; the first row tells. Rows that begin
    with ``#``, rows without a character and columns without one at the end are left out. The text is UTF-8,
    or UTF-16 that begins with its mark.

    Raises MissingFileError: there is no such file.
    Raises ValueError, saying what is wrong, not in which file.
    Raises MemoryLimitError: its cells take more than may be used.
    """
    content = _content(path)
    if len(content) > _SMALL_BYTES:
        MemoryBudget.here().require(f"reading {os.fspath(path)}", _BYTES_PER_BYTE * len(content))
    text = _decoded(content)
    lines = [line for line in io.StringIO(text, newline="") if line.strip() and not _COMMENT.match(line)]
    rows = [row for row in map(_without_blank_end, _split(lines)) if row]
    width = max(map(len, rows), default=0)
    if width * len(rows) > _MOST_CELLS:
        raise ValueError(f"it is no table: {len(rows)} rows, and one of them has {width} cells")
    return [row + [""] * (width - len(row)) for row in rows]


def is_missing(cell: str) -> bool:
    """Whether there is no value: nothing, or BIDS's ``n/a``."""
    return cell.lower() in _MISSING


def number(cell: str) -> float | None:
    """The number in a cell, None if it holds something else."""
    with contextlib.suppress(ValueError):
        return float(cell) if "_" not in cell else None  # as Python's literals, and nobody's tables, have it
    return None


def _content(path: str | os.PathLike[str]) -> bytes:
    try:
        return inputs.read_bytes(path)
    except MissingFileError:
        raise
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def _decoded(content: bytes) -> str:
    encoding = next((name for mark, name in _BOMS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} is not {encoding.upper()} text: save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError("it has zero bytes, as no text has: save the file as UTF-8")
    return text


def _split(lines: list[str]) -> Iterator[list[str]]:
    delimiter = next((mark for mark in "\t;," if lines and mark in lines[0].rstrip()), None)
    if delimiter is None:
        yield from (line.split() for line in lines)
        return
    import csv

    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        yield from rows
    except csv.Error as error:
        first = lines[max(rows.line_num - 1, 0)].strip()
        raise ValueError(f"a quotation mark opens a cell and does not close it, at {first!r}") from error


def _without_blank_end(row: list[str]) -> list[str]:
    cells = [cell.strip() for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells
