"""Summaries: what all runs of a study came to, on one page and in one table.

Covers: ``study.html`` and ``group_qc.tsv``, from what runs wrote. Does not cover: what pages look like
(``pages`` of ``reports``), tables of regions and matrices of all runs (``group``), one run (``dataset``).
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.compute.journal import PRIVATE, Entry, Failures, Journal
from sharedmask.errors import DatasetError
from sharedmask.records import dataclass
from sharedmask.reports.pages import RunRow, StudyReport, Timeline
from sharedmask.sources.names import Name
from sharedmask.study.analysis import FORMATS
from sharedmask.study.group import RUN_ENTITIES
from sharedmask.study.tables import read_rows, write_rows
from sharedmask.system import inputs
from sharedmask.typing import Array

LAST = "last.json"
QC = "group_qc.tsv"
_MOST_COLUMNS = 1000  # of a picture of all runs


def thumbnail_of(root: Path, key: str) -> Path:
    """Where a run's small picture lies."""
    folder = root / PRIVATE / "thumbnails"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key}.png"


def summarise(output: str | Path) -> Path:
    """Write the study's page: all runs with outputs, all that failed, and how the last pass went.

    ``group_qc.tsv`` gets a row for each run with its quality.

    Returns the path of ``study.html``.
    """
    root = Path(output).expanduser()
    failed = [RunRow(run, error) for run, error in Failures(root / PRIVATE / "failed").all().items()]
    done, coverage = _gathered(root)
    rows = [*failed, *(one.row for one in sorted(done, key=lambda one: one.rank))]
    page = root / "study.html"
    StudyReport(root.name, rows, *_last_pass(root), coverage=coverage.matrices).write(page)
    return page


def _last_pass(root: Path) -> tuple[dict[str, Any], Timeline | None, list[str]]:
    """Its parameters, its memory over time, and what was said of the study."""
    try:
        said = inputs.read_json(root / PRIVATE / LAST)
        return said["parameters"], Timeline(**said["timeline"]), said.get("notes", [])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, None, []


@dataclass(frozen=True)
class _Done:
    """A run with outputs."""

    quality: Mapping[str, str]
    row: RunRow

    @classmethod
    def of(cls, root: Path, entry: Entry) -> "_Done":
        page, picture = f"{entry.key}.html", thumbnail_of(root, entry.key)
        found = next((_rows_there(path)[:1] for path in _ending(entry, "_qc.tsv")), [])
        quality = {sys.intern(name): value for row in found for name, value in row.items()}
        facts = {**quality, **_told(entry), "files": len(entry.outputs), "seconds": f"{entry.seconds:.1f}"}
        thumbnail = picture.read_bytes() if picture.is_file() else None
        there = (root / page).is_file()
        return cls(quality, RunRow(entry.key, "", facts, page if there else None, thumbnail))

    @property
    def rank(self) -> tuple[float, float]:
        """The worst first: by motion, then by the ratio of signal to noise."""
        motion, ratio = (self.quality.get(name, "n/a") for name in ("mean_fd", "tsnr"))
        return (
            -float(motion) if motion != "n/a" else 0.0,
            float(ratio) if ratio != "n/a" else np.inf,
        )


def _rows_there(path: Path) -> list[dict[str, str]]:
    """Those of a table; none if it is gone, or not as it was written."""
    with suppress(DatasetError, OSError):
        return read_rows(path)
    return []


def _ending(entry: Entry, ending: str) -> Iterable[Path]:
    return (Path(path) for path in entry.outputs if path.endswith(ending))


def _told(entry: Entry) -> dict[str, Any]:
    """What the sidecar of a run's first table says was read."""
    tables = (Path(path) for path in entry.outputs if "_timeseries." in path)
    try:
        said = inputs.read_json(next(tables).with_suffix(".json"))
    except (OSError, ValueError, StopIteration):
        return {}
    return {
        "space": said.get("Space", ""),
        "TR (s)": said.get("RepetitionTime", "not known"),
        "mask": "found" if said.get("BrainMask") else "not found",
        "volumes kept": f"{len(said['KeptVolumes'])} of {said['NumberOfVolumes']}"
        if "KeptVolumes" in said
        else "all",
        "notes": "; ".join(said.get("Notes", [])),
    }


def write_quality(output: str | Path) -> Path:
    """Write ``group_qc.tsv`` alone: a row for each run, its entities and what its own table of quality has.

    Returns the table's path, where nothing is if no run has one.
    """
    root = Path(output).expanduser()
    _gathered(root)
    return root / QC


def _gathered(root: Path) -> tuple[list[_Done], "_Coverage"]:
    """All runs, of which the table of quality is written; and their coverage."""
    entries = sorted(Journal(root / PRIVATE / "complete.jsonl").entries, key=lambda entry: entry.key)
    done, rows, coverage = list[_Done](), list[dict[str, str]](), _Coverage(len(entries))
    for entry in entries:
        done.append(one := _Done.of(root, entry))
        coverage.add(entry)
        entities = Name.parse(Path(entry.key)).entities
        if one.quality:
            known = {name: entities.get(name, "n/a") for name in (*RUN_ENTITIES, "desc")}
            rows.append({"name": entry.key, **known, **one.quality})
    if rows:
        write_rows(root / QC, rows)
    return done, coverage


class _Coverage:
    """Coverage of regions in runs: of very many runs a column has the mean of several."""

    def __init__(self, n_runs: int) -> None:
        self._each = max(1, -(-n_runs // _MOST_COLUMNS))
        self._regions: dict[str, dict[str, int]] = defaultdict(dict)
        self._columns: dict[str, list[Array]] = defaultdict(list)
        self._waiting: dict[str, list[Array]] = defaultdict(list)

    def add(self, entry: Entry) -> None:
        tables = (path for form in FORMATS for path in _ending(entry, f"_timeseries.{form}"))
        for atlas, path in dict.fromkeys(map(_shares_beside, tables)):
            if rows := _rows_there(path):
                with suppress(KeyError, ValueError):
                    self._add(atlas, {row["Node"]: float(row["coverage"]) for row in rows})

    def _add(self, atlas: str, shares: Mapping[str, float]) -> None:
        regions, waiting = self._regions[atlas], self._waiting[atlas]
        for region in shares:
            regions.setdefault(region, len(regions))
        waiting.append(np.array([shares.get(region, np.nan) for region in regions]))
        if len(waiting) == self._each:
            self._columns[atlas].append(_mean(waiting))
            waiting.clear()

    @property
    def matrices(self) -> dict[str, Array]:
        """Of each atlas (n_regions, n_columns); NaN where a run lacks a region."""
        found = {}
        for atlas in self._regions:
            last = [_mean(waiting)] if (waiting := self._waiting[atlas]) else []
            found[atlas] = _padded([*self._columns[atlas], *last]).T
        return found


def _shares_beside(table: Path) -> tuple[str, Path]:
    """The atlas of a table of signals, and where its coverage is."""
    name = Name.parse(table)
    coverage = name.replace(stat="coverage", suffix="bold", extension=".tsv")
    return name.entities.get("atlas", ""), table.with_name(str(coverage))


def _padded(columns: Sequence[Array]) -> Array:
    """One below the other; regions that came later are NaN in those before."""
    most = max(map(len, columns))
    return np.array([np.pad(one, (0, most - len(one)), constant_values=np.nan) for one in columns])


def _mean(columns: Sequence[Array]) -> Array:
    if len(columns) == 1:
        return columns[0]
    values = _padded(columns)
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # of a region that none of them has
        mean: Array = np.where(there, values, 0).sum(axis=0) / there.sum(axis=0)
    return mean.astype(np.float32)
