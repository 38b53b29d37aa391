"""Groups: what all runs of a study gave, in one place.

Covers: one long table of regions, stacks of matrices and their means, of the tables that a study wrote. Does
not cover: tables of one run (``derivatives``), pages (``pages`` of ``reports``).
"""

import csv
import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from sharedmask.compute.journal import PRIVATE, Journal
from sharedmask.errors import NoInputError
from sharedmask.records import dataclass
from sharedmask.reports import figures
from sharedmask.sources.names import Name
from sharedmask.study.derivatives import Derivatives
from sharedmask.study.tables import read_rows, reading, write_matrix
from sharedmask.system.files import atomic_write
from sharedmask.typing import Array, NDArray

RUN_ENTITIES = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part", "space")
_WHAT = ("atlas", "seg", "scale", "stat", "desc")
REGIONS = "group_regions.tsv"


def summarise_regions(output: str | Path) -> Path:
    """Write ``group_regions.tsv``: a row for each region of each table of a run.

    Its columns are the entities of the run and of the table, ``region``, ``coverage``, ``n_timepoints``, and
    the ``mean`` and ``standard_deviation`` of the region's signal over time.

    Raises NoInputError: no run is complete.
    """
    root = Path(output).expanduser()
    path = root / REGIONS
    tables = _tables(root)
    if not tables:
        raise NoInputError(f"{root} has no table of a complete run: run the participant level first")
    heads = [*RUN_ENTITIES, *_WHAT, "region", "coverage", "n_timepoints", "mean", "standard_deviation"]
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(heads)
        for table in tables:
            writer.writerows(_rows(table))
    return path


def _tables(root: Path) -> list[Path]:
    return sorted(_outputs(root, "timeseries", (".tsv", ".parquet")))


def _outputs(root: Path, suffix: str, extensions: Sequence[str]) -> Iterator[Path]:
    for entry in Journal(root / PRIVATE / "complete.jsonl").entries:
        for path in map(Path, entry.outputs):
            if path.name.endswith(tuple(f"_{suffix}{extension}" for extension in extensions)):
                yield path


def _rows(table: Path) -> Iterator[list[str]]:
    names, signals = read_table(table)
    name = Name.parse(table)
    entities = [name.entities.get(key, "n/a") for key in (*RUN_ENTITIES, *_WHAT)]
    shares = _coverage(table.with_name(str(name.replace(stat="coverage", suffix="bold", extension=".tsv"))))
    for region, series in zip(names, signals.T, strict=True):
        numbers = [series.mean(), series.std()]
        yield [*entities, region, shares.get(region, "n/a"), str(len(series)), *map(_text, numbers)]


def _text(value: float) -> str:
    return "n/a" if value != value else repr(float(value))


def _coverage(path: Path) -> dict[str, str]:
    return {row["Node"]: row["coverage"] for row in read_rows(path)} if path.exists() else {}


def read_table(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """The names and numbers, NaN for ``n/a``, of a table that a study wrote.

    Raises DatasetError: it is not as it was written.
    """
    with reading(path):
        names, values = _read_table(path)
        if values.shape[1] != len(names) or not len(values):
            raise ValueError(f"{len(names)} names for {values.shape[1]} columns of {len(values)} rows")
        return names, values


def _read_table(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        return list(table.column_names), np.column_stack([column.to_numpy() for column in table.columns])
    text = path.read_text(encoding="utf-8")
    head, _, body = text.partition("\n")
    names = next(csv.reader([head], delimiter="\t"), [])
    if not body.strip():
        raise ValueError("it has no rows")
    return names, np.loadtxt(io.StringIO(body.replace("n/a", "nan")), delimiter="\t", ndmin=2)


# --- matrices ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Tables of one kind: of all runs, by one atlas, statistic, measure and way of cleaning.

    ``name``: as ``group_atlas-A_stat-mean_meas-correlation``.
    """

    name: str
    runs: tuple[str, ...]
    paths: tuple[Path, ...]

    @classmethod
    def all(
        cls, output: str | Path, suffix: str = "relmat", extensions: Sequence[str] = (".tsv",)
    ) -> "list[Stack]":
        """Those that a study's runs have: matrices, or with ``timeseries`` signals."""
        found: dict[str, list[tuple[str, Path]]] = {}
        for path in sorted(_outputs(Path(output).expanduser(), suffix, extensions)):
            name = Name.parse(path)
            what = (
                f"{key}-{value}" for key, value in name.entities.items() if key in (*_WHAT, "space", "meas")
            )
            run = name.replace(**dict.fromkeys((*_WHAT, "meas")), suffix="bold", extension="")
            found.setdefault("_".join(["group", *what]), []).append((str(run), path))
        return [cls(name, *map(tuple, zip(*members, strict=True))) for name, members in found.items()]

    def write(self, root: Path) -> list[Path]:
        """The stack as ``.npz`` (``matrices``, ``regions``, ``runs``) and the mean as ``_relmat.tsv``.

        A matrix is read at a time. Regions are those of any run; a run that lacks one has NaN there, and does
        not count in the mean, which is drawn in ``_relmat.png`` if matplotlib is installed.
        """
        regions = list(dict.fromkeys(name for path in self.paths for name in _heads(path)))
        stack, mean = root / f"{self.name}_relmat.npz", root / f"{self.name}_relmat.tsv"
        total, count = np.zeros((len(regions),) * 2), np.zeros((len(regions),) * 2)

        def matrices() -> Iterator[Array]:
            for path in self.paths:
                matrix = _placed(path, regions)
                there = ~np.isnan(matrix)
                total[there] += matrix[there]
                count[there] += 1
                yield matrix

        self._write_stack(stack, regions, matrices())
        with np.errstate(invalid="ignore"):
            return [stack, *_write_mean(mean, total / count, regions)]

    def write_tangent(self, root: Path) -> list[Path]:
        """Of signals: how each run's covariance differs from the mean of all, by nilearn's ``tangent``.

        Regions are those that every run has. The mean is that of the manifold of covariances.

        Raises NoInputError: there is one run only, or no region that all have.
        """
        from nilearn.connectome import ConnectivityMeasure

        tables = [_there(path) for path in self.paths]
        regions = [name for name in tables[0] if all(name in table for table in tables)]
        if len(tables) < 2 or not regions:
            raise NoInputError(f"{self.name}: tangent needs several runs with regions that all have")
        measure = ConnectivityMeasure(kind="tangent", standardize=None)
        made = measure.fit_transform([np.column_stack([table[name] for name in regions]) for table in tables])
        stack = root / f"{self.name}_meas-tangent_relmat.npz"
        self._write_stack(stack, regions, made)
        return [stack, *_write_mean(stack.with_suffix(".tsv"), measure.mean_, regions)]

    def _write_stack(self, path: Path, regions: Sequence[str], matrices: Iterable[Array]) -> None:
        with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            for name, texts in (("regions", regions), ("runs", self.runs)):
                _add(archive, name, [np.asarray(texts)], (len(texts),))
            _add(archive, "matrices", matrices, (len(self.paths), len(regions), len(regions)))


def _write_mean(path: Path, values: Array, regions: Sequence[str]) -> list[Path]:
    """The table, and its picture if matplotlib is installed."""
    write_matrix(path, values, regions)
    if find_spec("matplotlib") is None:
        return [path]
    picture = path.with_suffix(".png")
    with atomic_write(picture) as temporary:
        temporary.write_bytes(
            figures.matrix(values, path.stem.removeprefix("group_").removesuffix("_relmat"))
        )
    return [path, picture]


def _there(path: Path) -> dict[str, Array]:
    """The signals of the regions that have some."""
    names, signals = read_table(path)
    return {name: one for name, one in zip(names, signals.T, strict=True) if not np.isnan(one).any()}


def _heads(path: Path) -> list[str]:
    with reading(path), open(path, encoding="utf-8", newline="") as file:
        return next(csv.reader(file, delimiter="\t"))[1:]


def _placed(path: Path, regions: Sequence[str]) -> NDArray[np.float64]:
    """A run's matrix, among all regions."""
    numbers = {name: number for number, name in enumerate(regions)}
    placed = np.full((len(regions),) * 2, np.nan)
    with reading(path), open(path, encoding="utf-8", newline="") as file:
        heads, *rows = csv.reader(file, delimiter="\t")
        where = [numbers[name] for name in heads[1:]]
        values = [[np.nan if cell == "n/a" else float(cell) for cell in row[1:]] for row in rows]
        placed[np.ix_(where, where)] = np.reshape(np.array(values), (len(where),) * 2)
    return placed


def _add(archive: zipfile.ZipFile, name: str, parts: Iterable[Array], shape: tuple[int, ...]) -> None:
    """An array of ``parts`` one after the other."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        for number, part in enumerate(parts):
            if not number:
                _write_header(member, part, shape)
            member.write(np.ascontiguousarray(part).tobytes())


def _write_header(member: IO[bytes], part: Array, shape: tuple[int, ...]) -> None:
    facts: Mapping[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False, "shape": shape
    }  # fmt: skip
    np.lib.format.write_array_header_2_0(member, dict(facts))


def summarise_group(output: str | Path, *, tangent: bool = False) -> list[Path]:
    """Write the table of regions, and the stacks and means of matrices, as far as runs have them.

    With ``tangent`` also the tangent connectivity of all runs.

    Raises DatasetError: ``output`` is no data set of ours, or a table is not as it was written.
    """
    root = Path(output).expanduser()
    Derivatives.check(root)
    tables = [summarise_regions(root)] if _tables(root) else []
    written = [*tables, *(path for stack in Stack.all(root) for path in stack.write(root))]
    for signals in Stack.all(root, "timeseries", (".tsv", ".parquet")) if tangent else ():
        written += signals.write_tangent(root)
    return written
