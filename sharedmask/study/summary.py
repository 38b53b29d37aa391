"""Summaries: what all runs of a study came to, on one page and in one table.

Covers: ``study.html`` and ``group_qc.tsv``, from what runs wrote. Does not cover: what pages look like
(``pages`` of ``reports``), tables of regions and matrices of all runs (``group``), one run (``dataset``).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.compute.journal import PRIVATE, Entry, Failures, Journal
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


def thumbnail_of(root: Path, key: str) -> Path:
    """Where a run's small picture lies."""
    folder = root / PRIVATE / "thumbnails"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{key}.png"


def summarise(output: str | Path) -> Path:
    """Write the study's page: all runs with outputs, all that failed, and how the last pass went.

    ``group_qc.tsv`` gets a row for each run with its quality.

    Returns
    -------
    Path
        Of ``study.html``.
    """
    root = Path(output).expanduser()
    failed = [RunRow(run, error) for run, error in Failures(root / PRIVATE / "failed").all().items()]
    done = write_quality(root)
    rows = [*failed, *(one.row for one in sorted(done, key=lambda one: one.rank))]
    page = root / "study.html"
    StudyReport(root.name, rows, *_last_pass(root), coverage=_coverage(done)).write(page)
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

    entry: Entry
    quality: Mapping[str, str]
    row: RunRow

    @classmethod
    def of(cls, root: Path, entry: Entry) -> "_Done":
        page, picture = f"{entry.key}.html", thumbnail_of(root, entry.key)
        quality = next((read_rows(path)[0] for path in _ending(entry, "_qc.tsv") if path.is_file()), {})
        facts = {**quality, **_told(entry), "files": len(entry.outputs), "seconds": f"{entry.seconds:.1f}"}
        thumbnail = picture.read_bytes() if picture.is_file() else None
        there = (root / page).is_file()
        return cls(entry, quality, RunRow(entry.key, "", facts, page if there else None, thumbnail))

    @property
    def rank(self) -> tuple[float, float]:
        """The worst first: by motion, then by the ratio of signal to noise."""
        motion, ratio = (self.quality.get(name, "n/a") for name in ("mean_fd", "tsnr"))
        return (
            -float(motion) if motion != "n/a" else 0.0,
            float(ratio) if ratio != "n/a" else np.inf,
        )


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


def write_quality(root: Path) -> list[_Done]:
    """Write a row for each run: its entities, and what its own table of quality has."""
    entries = sorted(Journal(root / PRIVATE / "complete.jsonl").entries, key=lambda entry: entry.key)
    done, rows = [_Done.of(root, entry) for entry in entries], []
    for one in done:
        entities = Name.parse(Path(one.entry.key)).entities
        if one.quality:
            known = {name: entities.get(name, "n/a") for name in (*RUN_ENTITIES, "desc")}
            rows.append({"name": one.entry.key, **known, **one.quality})
    if rows:
        write_rows(root / QC, rows)
    return done


def _coverage(done: Iterable[_Done]) -> dict[str, Array]:
    """Of each atlas (n_regions, n_runs); NaN where a run lacks a region."""
    found: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for one in done:
        for table in (path for form in FORMATS for path in _ending(one.entry, f"_timeseries.{form}")):
            name = Name.parse(table)
            shares = table.with_name(str(name.replace(stat="coverage", suffix="bold", extension=".tsv")))
            if shares.is_file():
                rows = read_rows(shares)
                atlas = name.entities.get("atlas", "")
                found[atlas][one.entry.key] = {row["Node"]: float(row["coverage"]) for row in rows}
    return {atlas: _matrix(runs) for atlas, runs in found.items()}


def _matrix(runs: Mapping[str, Mapping[str, float]]) -> Array:
    regions = dict.fromkeys(region for shares in runs.values() for region in shares)
    return np.array([[shares.get(region, np.nan) for shares in runs.values()] for region in regions])
