"""Results to files, whole or not at all.

Covers: tables as text, regions as CIFTI-2, voxel series as NPZ or HDF5. Does not cover: BIDS names and
sidecars (``derivatives``), images, what makes a file whole or nothing (``files``).
"""

import contextlib
import csv
import errno
import functools
import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from sharedmask.errors import DatasetError, ParameterError
from sharedmask.records import dataclass
from sharedmask.regions import parcels
from sharedmask.regions.naming import columns, members
from sharedmask.regions.parcels import Kind
from sharedmask.regions.regions import Regions
from sharedmask.sources import hdf5
from sharedmask.system.files import atomic_write, write_text
from sharedmask.typing import Array


@dataclass(frozen=True)
class Style:
    """How a table of signals is written.

    ``header``: names; ``.txt``, as FSL writes it, never has them, ``.1D`` in a comment.
    ``precision``: significant digits. None: the fewest that read back as the same bits.
    ``transpose``: a row per region, its name first, instead of a column.
    """

    header: bool = True
    precision: int | None = None
    transpose: bool = False

    @property
    def words(self) -> list[str]:
        """What is not as usual."""
        return [] if self == Style() else [repr(self)]

    def lines(self, signals: Array, names: Sequence[str], ending: str) -> Iterator[str]:
        """The rows for a file of this ending."""
        separator, missing = TABLES[ending]
        named = self.header and missing == "n/a"
        heads = _heads(columns(names), separator) if named else []
        rows = signals.T if self.transpose else signals
        for number, cells in enumerate(_cells(rows, missing, self.precision)):
            if heads and not (number or self.transpose):
                yield separator.join(heads)
            first = [heads[number]] if heads and self.transpose else []
            yield separator.join([*first, *cells])


_ROWS = 128  # that become text at once
_PLAIN = 1e-4  # smaller numbers have an exponent in Python and zeros in JSON

TABLES = {".tsv": ("\t", "n/a"), ".csv": (",", "n/a"), ".txt": (" ", "nan"), ".1d": (" ", "nan")}
"""Endings of tables: what stands between cells, and for a missing number."""


PARCELLATED: dict[str, Kind] = {".ptseries.nii": "series", ".pconn.nii": "matrix", ".pscalar.nii": "scalars"}
"""Endings of CIFTI-2 files of regions, and what these hold."""


def split(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The name of a file before its ending, and the ending.

    Examples
    --------
    >>> split("out/sub-01.ptseries.nii"), split("a.b.tsv")
    (('sub-01', '.ptseries.nii'), ('a.b', '.tsv'))
    """
    name = Path(path).name
    ending = next((one for one in PARCELLATED if name.lower().endswith(one)), Path(path).suffix)
    return name[: len(name) - len(ending)], name[len(name) - len(ending) :]


def holds_regions(ending: str) -> bool:
    """Whether files of this ending have values of regions, not of all voxels."""
    return ending in TABLES or ending in PARCELLATED


def write_parcels(
    path: str | os.PathLike[str], values: Array, regions: Regions, t_r: float | None = None
) -> None:
    """Values of regions as the CIFTI-2 file that the ending of ``path`` says."""
    whole = parcels.content(regions, values, PARCELLATED[split(path)[1].lower()], t_r)
    with atomic_write(path) as temporary:
        temporary.write_bytes(whole)


def write_table(
    path: str | os.PathLike[str], signals: Array, names: Sequence[str], style: Style | None = None
) -> None:
    """One row per volume, one column per region, NaN as ``n/a``; ``-`` is stdout.

    ``path``: its ending tells what stands between cells, see :data:`TABLES`; else they are tabs.
    ``signals``: (n_timepoints, n_regions).
    ``names``: column names.
    """
    style, ending = style or Style(), Path(path).suffix.lower()
    lines = style.lines(np.atleast_2d(signals), names, ending if ending in TABLES else ".tsv")
    if ending == ".1d" and style.header and not style.transpose:
        lines = chain(["# " + " ".join("_".join(name.split()) for name in names)], lines)
    if os.fspath(path) == "-":
        _print("\n".join([*lines, ""]))
        return
    write_text(path, (f"{line}\n" for line in lines))


def _print(text: str) -> None:
    """The text in UTF-8, whatever the locale, as in files."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    if (bare := getattr(sys.stdout, "buffer", None)) is None:
        sys.stdout.write(text)
        return
    left = memoryview(text.encode())
    try:
        sys.stdout.flush()
        while left:  # one without a buffer, as of `python -u`, may take some of it
            left = left[bare.write(left) :]
        bare.flush()
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


@functools.lru_cache(maxsize=4)  # of very many runs they are the same
def _heads(names: tuple[str, ...], separator: str) -> list[str]:
    return [_cell(name, separator) for name in names]


def _cell(name: str, separator: str = "\t") -> str:
    """A name that begins with a quotation mark, or has a separator, in more of them, as readers expect it."""
    quoted = name.startswith('"') or separator in name
    return '"' + name.replace('"', '""') + '"' if quoted else name


def write_matrix(path: str | os.PathLike[str], matrix: Array, names: Sequence[str]) -> None:
    """A row and a column for each region, tab-separated, NaN as ``n/a``; names go first.

    ``matrix``: (n_regions, n_regions).
    """
    heads = list(map(_cell, columns(names)))
    rows = chain([["Node", *heads]], ([head, *row] for head, row in zip(heads, _cells(matrix), strict=True)))
    write_text(path, ("\t".join(row) + "\n" for row in rows))


def _cells(table: Array, missing: str = "n/a", precision: int | None = None) -> Iterator[list[str]]:
    """Of each row the shortest texts that read back as the same bits, or as many digits as asked for."""
    if precision is None and table.dtype == np.float64 and table.shape[1]:
        for start in range(0, len(table), _ROWS):
            yield from _doubles(table[start : start + _ROWS], missing)
        return
    form = str if precision is None else f"{{:.{precision}g}}".format
    for row in table:
        yield [missing if value != value else form(value) for value in row]


def _doubles(rows: Array, missing: str) -> list[list[str]]:
    """As Python writes them, twenty times faster; small ones and what is no number by itself."""
    import orjson

    text = orjson.dumps(np.ascontiguousarray(rows), option=orjson.OPT_SERIALIZE_NUMPY).decode()
    cells, sizes = [row.split(",") for row in text[2:-2].split("],[")], np.abs(rows)
    odd = ~((sizes >= _PLAIN) & (sizes < np.inf)) & (rows != 0)
    for row, column in np.argwhere(odd).tolist() if odd.any() else ():
        value = rows[row, column]
        cells[row][column] = missing if np.isnan(value) else repr(value.item())
    return cells


def write_rows(path: str | os.PathLike[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Rows that have names for their cells; those of the first are the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), restval="n/a", delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, [text.getvalue()])


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a table that we wrote, cells by the names of their columns."""
    with reading(path), open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", restval=None))
        if not rows or any(None in row or None in row.values() for row in rows):
            raise ValueError("it has no rows, or some are longer or shorter than its head")
        return rows


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Reading a table that we wrote and that others may have changed since.

    Raises DatasetError: it is not as it was written, or gone.
    """
    try:
        yield
    except FileNotFoundError as error:
        gone = "which was written, is not there any more: the participant level makes it again"
        raise DatasetError(f"{os.fspath(path)}, {gone}") from error
    except (ValueError, IndexError, KeyError, TypeError, StopIteration, RuntimeError, csv.Error) as error:
        again = "the participant level makes it again"
        raise DatasetError(f"{os.fspath(path)} is not as it was written ({error}): {again}") from error


def write_series(path: str | os.PathLike[str], series: Mapping[str, Array]) -> None:
    """One (n_timepoints, n_voxels) array per region, by name, as ``.npz`` or ``.h5``."""
    writer, names = series_writer(path), members(series)
    with atomic_write(path) as temporary:
        writer(temporary, dict(zip(names, series.values(), strict=True)))


def series_writer(path: str | os.PathLike[str]) -> Callable[[Path, Mapping[str, Array]], None]:
    """The writer that the ending of ``path`` asks for.

    Raises ParameterError: for any other ending than .npz, .h5 and .hdf5.
    """
    writer = _SERIES_WRITERS.get(Path(path).suffix.lower())
    if writer is None:
        forms = f"{', '.join(_SERIES_WRITERS)}, regions' statistics to {', '.join((*TABLES, *PARCELLATED))}"
        raise ParameterError(f"{path}: the series of voxels go to {forms}")
    return writer


def _write_npz(path: Path, series: Mapping[str, Array]) -> None:
    # numpy.savez takes names as keywords, so a region could not be called "file".
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in series.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _write_h5(path: Path, series: Mapping[str, Array]) -> None:
    with hdf5.create_file(path) as new:
        for name, array in series.items():
            new.add(name, array)


_SERIES_WRITERS = {".npz": _write_npz, ".h5": _write_h5, ".hdf5": _write_h5}
